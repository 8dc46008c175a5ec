/* SHA-256 (FIPS 180-4) and constant-time equality, both OpenSSL's. */
#include <sluice/base/containers.h>
#include <sluice/base/err.h>

#define OPENSSL_SUPPRESS_DEPRECATED /* SHA256_Init and kin: the only form that takes no memory */
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <pthread.h>
#include <stdlib.h>

/* EVP_sha256() looks the algorithm up at every use; fetched once, it is a pointer. */
static EVP_MD *sha256;
static pthread_once_t sha256_once = PTHREAD_ONCE_INIT;

static void fetch_sha256(void)
{
    sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    sl_assert(sha256);
}

struct sl_sha256_ctx {
    EVP_MD_CTX *evp;
};

struct sl_sha256_ctx *sl_sha256_new(void)
{
    pthread_once(&sha256_once, fetch_sha256);
    struct sl_sha256_ctx *c = malloc(sizeof *c);
    if (!c)
        return NULL;
    c->evp = EVP_MD_CTX_new();
    if (!c->evp || !EVP_DigestInit_ex2(c->evp, sha256, NULL)) {
        EVP_MD_CTX_free(c->evp);
        free(c);
        return NULL;
    }
    return c;
}

void sl_sha256_update(struct sl_sha256_ctx *c, const void *data, size_t len)
{
    sl_assert(EVP_DigestUpdate(c->evp, data, len));
}

void sl_sha256_final(struct sl_sha256_ctx *c, uint8_t out[32])
{
    sl_assert(EVP_DigestFinal_ex(c->evp, out, NULL));
    EVP_MD_CTX_free(c->evp);
    free(c);
}

/* Allocates nothing: the scheduler hashes pages between plan and commit. */
void sl_sha256(const void *data, size_t len, uint8_t out[32])
{
    SHA256_CTX c;
    bool ok = SHA256_Init(&c) && SHA256_Update(&c, data, len) && SHA256_Final(out, &c);
    sl_assert(ok);
}

void sl_hex(const uint8_t *data, size_t len, char *out)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < len; i++) {
        out[2 * i] = digits[data[i] >> 4];
        out[2 * i + 1] = digits[data[i] & 15];
    }
    out[2 * len] = 0;
}

bool sl_equal_ct(const void *a, const void *b, size_t len)
{
    return CRYPTO_memcmp(a, b, len) == 0;
}
