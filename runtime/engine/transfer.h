/* Private to the engine: what its thread does for exports and imports. */
#ifndef SLUICE_ENGINE_TRANSFER_PRIVATE_H
#define SLUICE_ENGINE_TRANSFER_PRIVATE_H

#include <sluice/engine/transfer.h>

struct job;

/* Commands of the inbox. All on the engine's thread, or after it has ended. */
void sl_export_drop(struct sl_engine *e, struct sl_export *x); /* one of its two owners is done */
void sl_import_answer(struct sl_engine *e, struct sl_import *im);
void sl_import_finish(struct sl_engine *e, struct sl_import *im);

/* Around a step: pins pages that it completes, tells readers of each layer, makes them final. */
void sl_exports_plan(struct sl_engine *e, const struct sl_plan *plan);
void sl_exports_layer(void *engine, uint32_t layer, uint32_t n_rows);
void sl_exports_commit(struct sl_engine *e, enum sl_status status);
/* The job of the export ended. */
void sl_export_end(struct sl_engine *e, struct sl_export *x, enum sl_status status);

#endif
