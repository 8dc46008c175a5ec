/* Private to serve: what worker and uplink read alike from a SUBMIT. */
#ifndef SLUICE_SERVE_SUBMIT_H
#define SLUICE_SERVE_SUBMIT_H

#include <sluice/text/sampler.h>
#include <sluice/transport/bus.h>

/* Arrays are borrowed from the message, but the biases, which go to bias [SL_LIMIT_logit_bias]. */
void submit_sampling(const struct sl_msg_submit *m, struct sl_logit_bias *bias,
                     struct sl_sampling *out);

#endif
