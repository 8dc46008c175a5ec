/* Jinja lexer: template source to tokens on demand, with the whitespace rules of trim_blocks and
 * lstrip_blocks. Source newlines are "\n" already. */
#include "jinja.h"

#include <string.h>

void jj_lex_init(struct jj_lex *l, const char *source, size_t len)
{
    *l = (struct jj_lex){.start = source, .p = source, .end = source + len, .line = 1, .mode = 'd'};
    l->line_starting = true;
}

static struct jj_token lex_fail(struct jj_lex *l, const char *why)
{
    if (!l->error)
        l->error = why;
    l->p = l->end;
    return (struct jj_token){.type = JJ_T_EOF, .line = l->line};
}

static bool at(const struct jj_lex *l, const char *p, const char *z)
{
    size_t n = strlen(z);
    return (size_t)(l->end - p) >= n && memcmp(p, z, n) == 0;
}

/* Moves to `to`, counting lines and noting whether what was passed ends one. */
static void advance(struct jj_lex *l, const char *to)
{
    for (const char *p = l->p; p < to; p++)
        l->line += *p == '\n';
    l->line_starting = to > l->p && to[-1] == '\n';
    l->p = to;
}

static const char *skip_space(const struct jj_lex *l, const char *p)
{
    while (p < l->end) {
        size_t pos = 0;
        if (!jj_is_space(jj_utf8_next((struct sl_str){p, (size_t)(l->end - p)}, &pos)))
            break;
        p += pos;
    }
    return p;
}

/* After an end of a tag at p of `n` bytes: '-' eats all space, '+' and variables eat nothing, a
 * plain end of a block or comment eats one newline. */
static const char *after_end(const struct jj_lex *l, const char *p, char sign, bool trim)
{
    if (sign == '-')
        return skip_space(l, p);
    return trim && sign != '+' && p < l->end && *p == '\n' ? p + 1 : p;
}

/* The data before a tag at `tag`, shortened as the tag's sign and lstrip_blocks want. */
static struct sl_str data_before(const struct jj_lex *l, const char *tag, char sign, bool lstrip)
{
    struct sl_str s = {l->p, (size_t)(tag - l->p)};
    if (sign == '-')
        return jj_strip(s, NULL, false, true);
    if (sign == '+' || !lstrip)
        return s;
    size_t cut = s.len;
    while (cut > 0 && s.data[cut - 1] != '\n')
        cut--;
    if (cut == 0 && !l->line_starting)
        return s;
    if (jj_strip((struct sl_str){s.data + cut, s.len - cut}, NULL, true, true).len == 0)
        s.len = cut;
    return s;
}

static struct jj_token data_token(uint32_t line, struct sl_str s)
{
    return (struct jj_token){.type = JJ_T_DATA, .line = line, .text = s};
}

/* `{%[-+]? raw -?%}` at p: the end of it, else NULL. */
static const char *raw_begin(const struct jj_lex *l, const char *p)
{
    p += 2;
    if (p < l->end && (*p == '-' || *p == '+'))
        p++;
    p = skip_space(l, p);
    if (!at(l, p, "raw"))
        return NULL;
    p = skip_space(l, p + 3);
    if (at(l, p, "-%}"))
        return skip_space(l, p + 3);
    return at(l, p, "%}") ? p + 2 : NULL;
}

/* `{%[-+]? endraw [-+]?%}` at p: the end of it, else NULL. */
static const char *raw_end(const struct jj_lex *l, const char *p, char *sign)
{
    p += 2;
    *sign = 0;
    if (p < l->end && (*p == '-' || *p == '+'))
        *sign = *p++;
    p = skip_space(l, p);
    if (!at(l, p, "endraw"))
        return NULL;
    p = skip_space(l, p + 6);
    char end_sign = 0;
    if (p < l->end && (*p == '-' || *p == '+'))
        end_sign = *p++;
    return at(l, p, "%}") ? after_end(l, p + 2, end_sign, true) : NULL;
}

static struct jj_token lex_raw(struct jj_lex *l)
{
    uint32_t line = l->line;
    for (const char *p = l->p; p < l->end; p++) {
        char sign;
        const char *end = at(l, p, "{%") ? raw_end(l, p, &sign) : NULL;
        if (end) {
            struct sl_str s = data_before(l, p, sign, true);
            advance(l, end);
            return data_token(line, s);
        }
    }
    if (l->p == l->end)
        return data_token(line, (struct sl_str){l->p, 0});
    return lex_fail(l, "missing end of raw directive");
}

static bool skip_comment(struct jj_lex *l, const char *p)
{
    for (const char *from = p; (size_t)(l->end - p) >= 2; p++) {
        if (!at(l, p, "#}"))
            continue;
        char sign = p > from && (p[-1] == '-' || p[-1] == '+') ? p[-1] : 0;
        advance(l, after_end(l, p + 2, sign, true));
        return true;
    }
    return false;
}

/* One step in data: what stands before the next tag, and the tag's begin held back. An empty DATA
 * token means "ask again". */
static struct jj_token lex_data(struct jj_lex *l)
{
    const char *p = l->p;
    while (p < l->end && !(*p == '{' && p + 1 < l->end && strchr("{%#", p[1]) && p[1]))
        p++;
    uint32_t line = l->line;
    if (p == l->end) {
        struct sl_str rest = {l->p, (size_t)(p - l->p)};
        advance(l, p);
        return rest.len ? data_token(line, rest)
                        : (struct jj_token){.type = JJ_T_EOF, .line = line};
    }
    char kind = p[1];
    char sign = p + 2 < l->end && (p[2] == '-' || p[2] == '+') ? p[2] : 0;
    struct sl_str s = data_before(l, p, sign, kind != '{');
    const char *raw = kind == '%' ? raw_begin(l, p) : NULL;
    if (raw) {
        advance(l, raw);
        struct jj_token inner = lex_raw(l);
        l->held = inner;
        l->has_held = !l->error;
        return l->error ? inner : data_token(line, s);
    }
    if (kind == '#') {
        advance(l, p + 2 + (sign != 0));
        return l->p == l->end || skip_comment(l, l->p) ? data_token(line, s)
                                                       : lex_fail(l, "missing end of comment tag");
    }
    advance(l, p + 2 + (sign != 0));
    l->mode = kind == '{' ? 'v' : 'b';
    l->held =
        (struct jj_token){.type = kind == '{' ? JJ_T_VAR_BEGIN : JJ_T_BLOCK_BEGIN, .line = l->line};
    l->has_held = true;
    return data_token(line, s);
}

/* True and passed when the tag ends here. */
static bool lex_tag_end(struct jj_lex *l, struct jj_token *out)
{
    const char *p = l->p;
    char sign = 0;
    if (p < l->end && (*p == '-' || (*p == '+' && l->mode == 'b')))
        sign = *p++;
    if (!at(l, p, l->mode == 'v' ? "}}" : "%}"))
        return false;
    *out =
        (struct jj_token){.type = l->mode == 'v' ? JJ_T_VAR_END : JJ_T_BLOCK_END, .line = l->line};
    advance(l, after_end(l, p + 2, sign, l->mode == 'b'));
    l->mode = 'd';
    return true;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_word(char c)
{
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
           (unsigned char)c >= 0x80;
}

/* `digits(_digits)*`, the digits of the base; returns p when there are none. */
static const char *digits(const struct jj_lex *l, const char *p, int base)
{
    const char *from = p;
    while (p < l->end) {
        const char *q = *p == '_' && p > from ? p + 1 : p;
        if (q == l->end)
            break;
        char c = (char)(*q | 0x20);
        int d = is_digit(*q) ? *q - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : 99;
        if (d >= base)
            break;
        p = q + 1;
    }
    return p;
}

static struct jj_token lex_number(struct jj_lex *l)
{
    const char *p = l->p, *q = digits(l, p, 10);
    enum jj_tok type = JJ_T_INT;
    bool after_dot = p > l->start && p[-1] == '.';
    if (!after_dot) {
        if (q + 1 < l->end && *q == '.' && is_digit(q[1])) {
            q = digits(l, q + 1, 10);
            type = JJ_T_FLOAT;
        }
        if (q < l->end && (*q | 0x20) == 'e') {
            const char *x = q + 1;
            x += x < l->end && (*x == '+' || *x == '-');
            if (digits(l, x, 10) > x) {
                q = digits(l, x, 10);
                type = JJ_T_FLOAT;
            }
        }
    }
    if (type == JJ_T_INT && *p == '0') {
        char c = p + 1 < l->end ? (char)(p[1] | 0x20) : 0;
        int base = c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 1;
        const char *x = base == 1 ? p : p + 2;
        q = digits(l, x, base);
        if (base != 1 && q == x)
            q = p + 1;
    }
    struct jj_token t = {.type = type, .line = l->line, .text = {p, (size_t)(q - p)}};
    advance(l, q);
    return t;
}

static struct jj_token lex_string(struct jj_lex *l)
{
    const char *p = l->p + 1;
    while (p < l->end && *p != *l->p)
        p += *p == '\\' && p + 1 < l->end ? 2 : 1;
    if (p >= l->end)
        return lex_fail(l, "unterminated string");
    struct jj_token t = {.type = JJ_T_STRING, .line = l->line, .text = {l->p, 0}};
    t.text.len = (size_t)(p + 1 - l->p);
    advance(l, p + 1);
    return t;
}

static const struct {
    const char *text;
    enum jj_op op;
} operators[] = {
    {"//", JJ_FLOORDIV}, {"**", JJ_POW},   {"==", JJ_EQ},      {"!=", JJ_NE},      {">=", JJ_GE},
    {"<=", JJ_LE},       {"+", JJ_ADD},    {"-", JJ_SUB},      {"/", JJ_DIV},      {"*", JJ_MUL},
    {"%", JJ_MOD},       {"~", JJ_TILDE},  {"[", JJ_LBRACKET}, {"]", JJ_RBRACKET}, {"(", JJ_LPAREN},
    {")", JJ_RPAREN},    {"{", JJ_LBRACE}, {"}", JJ_RBRACE},   {">", JJ_GT},       {"<", JJ_LT},
    {"=", JJ_ASSIGN},    {".", JJ_DOT},    {":", JJ_COLON},    {"|", JJ_PIPE},     {",", JJ_COMMA},
    {";", JJ_SEMICOLON},
};

static bool balance(struct jj_lex *l, char c)
{
    const char *pair = strchr("([{", c);
    if (pair) {
        if (l->n_open == sizeof l->open)
            return false;
        l->open[l->n_open++] = (char)(c == '(' ? ')' : c == '[' ? ']' : '}');
        return true;
    }
    if (!strchr(")]}", c))
        return true;
    return l->n_open > 0 && l->open[--l->n_open] == c;
}

static struct jj_token lex_operator(struct jj_lex *l)
{
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++) {
        if (!at(l, l->p, operators[i].text))
            continue;
        if (!balance(l, operators[i].text[0]))
            return lex_fail(l, "brackets do not match or nest too deep");
        struct jj_token t = {.type = JJ_T_OP, .op = operators[i].op, .line = l->line};
        advance(l, l->p + strlen(operators[i].text));
        return t;
    }
    return lex_fail(l, "unexpected character");
}

static struct jj_token lex_tag(struct jj_lex *l)
{
    struct jj_token t;
    advance(l, skip_space(l, l->p));
    if (l->p == l->end)
        return lex_fail(l, "missing end of tag");
    if (l->n_open == 0 && lex_tag_end(l, &t))
        return t;
    char c = *l->p;
    if (is_digit(c))
        return lex_number(l);
    if (c == '\'' || c == '"')
        return lex_string(l);
    if (!is_word(c))
        return lex_operator(l);
    const char *p = l->p;
    while (p < l->end && is_word(*p))
        p++;
    t = (struct jj_token){.type = JJ_T_NAME, .line = l->line, .text = {l->p, (size_t)(p - l->p)}};
    advance(l, p);
    return t;
}

struct jj_token jj_lex_next(struct jj_lex *l)
{
    for (;;) {
        struct jj_token t;
        if (l->has_held) {
            l->has_held = false;
            t = l->held;
        } else {
            t = l->mode == 'd' ? lex_data(l) : lex_tag(l);
        }
        if (t.type != JJ_T_DATA || t.text.len > 0)
            return t;
    }
}
