/* What the two halves of the codec share: the range check of a message, used in both directions. */
#ifndef SLUICE_BUS_CODEC_H
#define SLUICE_BUS_CODEC_H

#include <sluice/base/err.h>
#include <sluice/transport/bus.h>

/* Every count, enum, text and number within its bounds; SL_INVALID names the field. */
enum sl_status sl_msg_check(const struct sl_msg *m, struct sl_err *err);

/* Version 1 of the wire. strip: takes all newer fields out; false when the message itself is newer.
 * is_old: nothing newer is in it. */
struct ProtobufCMessage;
bool sl_wire_strip(struct ProtobufCMessage *m);
bool sl_wire_is_old(struct ProtobufCMessage *m);

#endif
