/* A stored answer, read for an audit: an OpenAI answer with a `sluice` object (return_chain), whole
 * or as the stream's events; or {"request": ..., "response": such an answer}. */
#ifndef SLUICE_CLI_AUDIT_FILE_H
#define SLUICE_CLI_AUDIT_FILE_H

#include <sluice/engine/audit.h>

struct audit_choice {
    struct sl_audit_claim claim; /* arrays in the file's arena */
    struct sl_buf text;
    uint32_t n_logprobs; /* given; 0: none */
    struct sl_str finish_reason; /* empty: none was given */
};
struct audit_file {
    struct sl_arena mem;
    struct sl_json **docs;
    uint32_t n_docs;
    const struct sl_str *stop;
    uint32_t n_stop;
    bool include_stop, skip_special, echo;
    struct audit_choice *choices;
    uint32_t n_choices, longest; /* tokens of the longest choice, its prompt included */
};

/* `data` may go once it returns. SL_USAGE, or SL_BAD_JSON, for what is no stored answer. */
enum sl_status audit_file_parse(const char *data, size_t len, struct audit_file *out,
                                struct sl_err *err);
void audit_file_free(struct audit_file *f);

#endif
