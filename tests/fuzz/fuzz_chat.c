/* Fuzz target: bytes of a chat template. It opens or is refused with a message; opened, it renders
 * a conversation with tools or ends in a message that stays one line, and leaves no output behind;
 * rendering twice gives the same. */
#include <sluice/base/limits.h>
#include <sluice/text/chat.h>

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char vars_text[] =
    "{\"messages\": [{\"role\": \"system\", \"content\": \" terse \"}, {\"role\": \"user\", "
    "\"content\": \"na\xc3\xafve \xf0\x9f\x99\x82\\n\"}, {\"role\": \"assistant\", \"content\": "
    "null, \"tool_calls\": [{\"id\": \"a\", \"type\": \"function\", \"function\": {\"name\": "
    "\"f\", "
    "\"arguments\": {\"x\": [1, 2.5, true, null]}}}]}, {\"role\": \"tool\", \"content\": \"{}\"}], "
    "\"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": "
    "{\"type\": "
    "\"object\", \"properties\": {\"x\": {\"type\": \"array\"}}}}}], \"bos_token\": \"<s>\", "
    "\"eos_token\": \"</s>\", \"add_generation_prompt\": true, \"__now\": 1721988000, \"l\": [3, "
    "1, "
    "2], \"s\": \"Hello\", \"d\": {\"b\": 1, \"a\": {\"x\": [1]}}, \"i\": 7, \"f\": 2.5, \"n\": "
    "null}";

static enum sl_status render(const struct sl_template *t, const struct sl_json *vars,
                             struct sl_buf *out)
{
    struct sl_err err = {0};
    enum sl_status status = sl_template_render(t, vars, out, &err);
    if (status == SL_OK)
        return out->len <= SL_LIMIT_template_output_bytes ? SL_OK : (abort(), SL_FAILED);
    if (status != SL_INVALID || !err.msg[0] || strchr(err.msg, '\n') || out->len != 0)
        abort();
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct sl_json *vars; /* for the life of the process */
    struct sl_template *t = NULL;
    struct sl_err err = {0};
    struct sl_buf one = {0}, two = {0};
    if (!vars && sl_json_parse(vars_text, sizeof vars_text - 1, &vars, &err) != SL_OK)
        abort();
    enum sl_status status = sl_template_open((const char *)data, size, &t, &err);
    if (status != SL_OK) {
        if (status != SL_MODEL || t || !err.msg[0])
            abort();
        return 0;
    }
    status = render(t, vars, &one);
    if (render(t, vars, &two) != status || one.len != two.len ||
        (one.len > 0 && memcmp(one.data, two.data, one.len) != 0))
        abort();
    sl_buf_free(&one);
    sl_buf_free(&two);
    sl_template_close(t);
    return 0;
}
