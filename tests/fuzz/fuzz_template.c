/* Fuzz target: a chat template and the JSON of its variables, parted by the first NUL byte (without
 * one the variables are a fixed dialogue). Every run ends within the budgets. */
#include <sluice/base/limits.h>
#include <sluice/text/chat.h>

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char dialogue[] =
    "{\"messages\":[{\"role\":\"system\",\"content\":\"Be brief.\"},{\"role\":\"user\",\"content\":"
    "\" h\\u00e9llo \"},{\"role\":\"assistant\",\"content\":\"\"}],\"add_generation_prompt\":true,"
    "\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"tools\":[{\"name\":\"f\",\"n\":[1,2.5,null]}]}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    size_t source_len = nul ? (size_t)(nul - data) : size;
    const char *vars = nul ? (const char *)nul + 1 : dialogue;
    size_t vars_len = nul ? size - source_len - 1 : sizeof dialogue - 1;
    struct sl_template *t = NULL;
    struct sl_json *json = NULL;
    struct sl_err err = {0};
    struct sl_buf out = {.cap_bytes = SL_LIMIT_template_output_bytes};
    if (sl_template_open((const char *)data, source_len, &t, &err)) {
        if (!err.msg[0])
            abort();
        return 0;
    }
    if (!sl_json_parse(vars, vars_len, &json, &err)) {
        enum sl_status s = sl_template_render(t, json, &out, &err);
        if ((s && !err.msg[0]) || out.len > SL_LIMIT_template_output_bytes)
            abort();
        sl_json_free(json);
    }
    sl_buf_free(&out);
    sl_template_close(t);
    return 0;
}
