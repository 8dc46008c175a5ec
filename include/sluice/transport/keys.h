/* CURVE keys of a node: the folder that --curve-dir names, and how it is made.
 *
 *   DIR/secret.key     own key, mode 0600:           "ROLE-secret NAME SECRET"
 *   DIR/public.key     the same node for its peers:  "ROLE NAME PUBLIC"
 *   DIR/allowed/X.pub  keys of peers, any number of lines like that of public.key
 *   DIR/next.key       optional, a router's or worker's next own key (see below)
 *
 * ROLE is router or worker, NAME at most 63 of [A-Za-z0-9._-], the keys are Z85 (ZeroMQ RFC 32) of
 * 32 bytes, 40 characters. Lines that begin with # and empty ones are skipped. Nobody but the
 * owner may read the secret or write to the folder, its sub-folder or a file in it. A router lets
 * in whoever shows a key of `allowed`; a worker connects only to routers whose public key lies
 * there. Who is in no file is refused.
 *
 * The folder is looked at four times a second and at SIGHUP. A key that came is good at once; links
 * of a key that went are cut. A node's own key is changed so: keygen --next writes DIR/next.key and
 * DIR/next.pub; next.pub goes to the peers' `allowed` beside the old key; then `keygen --promote`
 * (a rename) puts it in force. A router then binds again under the new key, so that every link is
 * made anew, once, and streams go on at the next token; a worker uses it from its next connection
 * on, at the latest when the routers drop its old key. Last, the old keys are deleted. */
#ifndef SLUICE_TRANSPORT_KEYS_H
#define SLUICE_TRANSPORT_KEYS_H

#include <sluice/base/err.h>
#include <stdbool.h>

#define SL_KEY_NAME_BYTES 64 /* with its NUL */

/* Bits, so that a set of them is a mask. */
enum sl_key_role { SL_KEY_ROUTER = 1, SL_KEY_WORKER = 2 };

/* 0 for an unknown word. */
unsigned sl_key_role_of(const char *word);

struct sl_keys_request {
    const char *dir;
    const char *name; /* of the node */
    enum sl_key_role role;
    bool force;       /* replace a key that is there */
    bool next;        /* write next.key and next.pub, keep the present pair */
};
/* Makes the folder (mode 0700, `allowed` in it) and a fresh pair; the node's own public key is one
 * of `allowed`, since processes of one node may share its folder. Files appear whole or not at all.
 * SL_CONFIG when a key is there already, without `force`. */
enum sl_status sl_keys_make(const struct sl_keys_request *r, struct sl_err *err);
/* next.key becomes secret.key, next.pub public.key; the old public key leaves the own `allowed`. */
enum sl_status sl_keys_promote(const char *dir, struct sl_err *err);
/* The public key of `peer_dir` joins `allowed` of `dir`. */
enum sl_status sl_keys_admit(const char *dir, const char *peer_dir, struct sl_err *err);

#endif
