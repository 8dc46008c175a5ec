/* String operations of templates, over UTF-8 by code points, as Python's str has them. Case follows
 * Unicode's simple mappings; of the mappings to several letters only the German sharp s. */
#include "jinja.h"

#include <string.h>
#include <utf8proc.h>

size_t jj_utf8_len(struct sl_str s)
{
    size_t n = 0;
    for (size_t i = 0; i < s.len; i++)
        n += ((unsigned char)s.data[i] & 0xc0) != 0x80;
    return n;
}

uint32_t jj_utf8_next(struct sl_str s, size_t *pos)
{
    utf8proc_int32_t c;
    utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)s.data + *pos,
                                          (utf8proc_ssize_t)(s.len - *pos), &c);
    *pos += n > 0 ? (size_t)n : 1;
    return n > 0 ? (uint32_t)c : 0xfffd;
}

size_t jj_utf8_at(struct sl_str s, size_t index)
{
    size_t i = 0;
    while (i < s.len && (index > 0 || ((unsigned char)s.data[i] & 0xc0) == 0x80)) {
        index -= ((unsigned char)s.data[i] & 0xc0) != 0x80;
        i++;
        if (index == 0 && (i == s.len || ((unsigned char)s.data[i] & 0xc0) != 0x80))
            break;
    }
    return i;
}

void jj_utf8_put(struct sl_buf *b, uint32_t c)
{
    utf8proc_uint8_t u[4];
    utf8proc_ssize_t n = utf8proc_encode_char((utf8proc_int32_t)c, u);
    sl_buf_append(b, u, (size_t)n);
}

bool jj_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

/* The number of a string escape: n hexadecimal digits, or up to n octal ones. */
static bool escape_number(struct sl_str s, size_t *pos, int base, size_t n, uint32_t *out)
{
    uint32_t v = 0;
    size_t i = 0;
    for (; i < n && *pos < s.len; i++, (*pos)++) {
        char c = s.data[*pos], low = (char)(c | 0x20);
        int d = c >= '0' && c <= '9' ? c - '0' : low >= 'a' && low <= 'f' ? low - 'a' + 10 : 99;
        if (d >= base)
            break;
        v = v * (uint32_t)base + (uint32_t)d;
    }
    *out = v;
    return base == 8 ? i > 0 : i == n;
}

/* What stands after a backslash at *pos, as Python's unicode-escape reads it. */
static bool unescape(struct sl_str s, size_t *pos, struct sl_buf *out)
{
    static const char plain[] = "\\\\''\"\"a\ab\bf\fn\nr\rt\tv\v";
    char c = s.data[*pos];
    for (const char *q = plain; *q; q += 2)
        if (*q == c) {
            (*pos)++;
            sl_buf_putc(out, q[1]);
            return true;
        }
    if (c == '\n') {
        (*pos)++;
        return true;
    }
    uint32_t v;
    size_t n = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (n > 0) {
        (*pos)++;
        if (!escape_number(s, pos, 16, n, &v))
            return false;
    } else if (!(c >= '0' && c <= '7')) {
        sl_buf_putc(out, '\\');
        return c != 'N';
    } else if (!escape_number(s, pos, 8, 3, &v)) {
        return false;
    }
    if (v > 0x10ffff || (v >= 0xd800 && v < 0xe000))
        return false;
    jj_utf8_put(out, v);
    return true;
}

bool jj_unescape(struct sl_str quoted, struct sl_buf *out)
{
    struct sl_str s = {quoted.data + 1, quoted.len - 2};
    for (size_t i = 0; i < s.len;) {
        if (s.data[i] != '\\')
            sl_buf_putc(out, s.data[i++]);
        else if (++i >= s.len || !unescape(s, &i, out))
            return false;
    }
    return true;
}

static bool has_char(struct sl_str set, uint32_t c)
{
    for (size_t pos = 0; pos < set.len;)
        if (jj_utf8_next(set, &pos) == c)
            return true;
    return false;
}

static bool strips(uint32_t c, const struct sl_str *chars)
{
    return chars ? has_char(*chars, c) : jj_is_space(c);
}

struct sl_str jj_strip(struct sl_str s, const struct sl_str *chars, bool left, bool right)
{
    while (left && s.len > 0) {
        size_t pos = 0;
        if (!strips(jj_utf8_next(s, &pos), chars))
            break;
        s.data += pos;
        s.len -= pos;
    }
    while (right && s.len > 0) {
        size_t from = s.len - 1;
        while (from > 0 && ((unsigned char)s.data[from] & 0xc0) == 0x80)
            from--;
        size_t pos = from;
        if (!strips(jj_utf8_next(s, &pos), chars))
            break;
        s.len = from;
    }
    return s;
}

static bool is_cased(uint32_t c)
{
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT;
}

static void put_upper(struct sl_buf *b, uint32_t c, bool title)
{
    if (c == 0xdf) {
        sl_buf_puts(b, title ? "Ss" : "SS");
        return;
    }
    utf8proc_int32_t x = (utf8proc_int32_t)c;
    jj_utf8_put(b, (uint32_t)(title ? utf8proc_totitle(x) : utf8proc_toupper(x)));
}

static void put_lower(struct sl_buf *b, uint32_t c)
{
    jj_utf8_put(b, (uint32_t)utf8proc_tolower((utf8proc_int32_t)c));
}

/* 'u' upper, 'l' lower, 'c' capitalize, 't' str.title(), 'j' the title filter (words begin after
 * space and opening brackets and dashes, and begin in upper case). */
struct jj_value jj_case(struct jj_ev *ev, struct sl_str s, char how)
{
    struct sl_buf b = {.cap_bytes = SL_LIMIT_template_output_bytes};
    bool first = true;
    if (!jj_charge(ev, s.len * 4))
        return jj_undef();
    for (size_t pos = 0; pos < s.len;) {
        uint32_t c = jj_utf8_next(s, &pos);
        if (how == 'u' || (how == 'j' && first))
            put_upper(&b, c, false);
        else if (how == 'l' || !first)
            put_lower(&b, c);
        else
            put_upper(&b, c, true);
        if (how == 't')
            first = !is_cased(c);
        else if (how == 'j')
            first = jj_is_space(c) || (c < 0x80 && c > 0 && strchr("-({[<", (int)c));
        else
            first = false;
    }
    return jj_take(ev, &b);
}

bool jj_find(struct sl_str s, struct sl_str what, size_t from, size_t *at)
{
    if (from > s.len || what.len > s.len - from)
        return false;
    const char *p =
        what.len == 0 ? s.data + from : memmem(s.data + from, s.len - from, what.data, what.len);
    if (!p)
        return false;
    *at = (size_t)(p - s.data);
    return true;
}

struct jj_value jj_replace(struct jj_ev *ev, struct sl_str s, struct sl_str old, struct sl_str by,
                           int64_t count)
{
    struct sl_buf b = {.cap_bytes = SL_LIMIT_template_output_bytes};
    size_t pos = 0, at;
    if (!jj_charge(ev, s.len))
        return jj_undef();
    for (; count != 0 && pos <= s.len && jj_find(s, old, pos, &at); count--) {
        sl_buf_append(&b, s.data + pos, at - pos);
        sl_buf_append(&b, by.data, by.len);
        pos = at + old.len;
        if (old.len == 0) { /* before every code point and at the end */
            if (pos == s.len) {
                pos++;
                break;
            }
            size_t next = pos;
            jj_utf8_next(s, &next);
            sl_buf_append(&b, s.data + pos, next - pos);
            pos = next;
        }
        if (b.failed || !jj_charge(ev, by.len))
            break;
    }
    if (pos < s.len)
        sl_buf_append(&b, s.data + pos, s.len - pos);
    return jj_take(ev, &b);
}

/* str.splitlines' line ends: \n \r \r\n \v \f \x1c-\x1e \x85 U+2028 U+2029. */
bool jj_next_line(struct sl_str s, size_t *pos, struct sl_str *line)
{
    if (*pos >= s.len)
        return false;
    size_t from = *pos;
    while (*pos < s.len) {
        size_t end = *pos;
        uint32_t c = jj_utf8_next(s, pos);
        if ((c >= 10 && c <= 13) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 ||
            c == 0x2029) {
            *line = (struct sl_str){s.data + from, end - from};
            if (c == '\r' && *pos < s.len && s.data[*pos] == '\n')
                (*pos)++;
            return true;
        }
    }
    *line = (struct sl_str){s.data + from, s.len - from};
    return true;
}

/* Methods. */

static struct jj_value split_space(struct jj_ev *ev, struct sl_str s, int64_t max)
{
    struct jj_value list = jj_list_new(ev, JJ_LIST, 0);
    for (s = jj_strip(s, NULL, true, false); !ev->failed && s.len > 0; max--) {
        size_t pos = 0, end = 0;
        while (max != 0 && pos < s.len && !jj_is_space(jj_utf8_next(s, &pos)))
            end = pos;
        if (max == 0) /* the rest in one piece */
            end = s.len;
        jj_push(ev, list.u.list, jj_str((struct sl_str){s.data, end}));
        s = jj_strip((struct sl_str){s.data + end, s.len - end}, NULL, true, false);
    }
    return list;
}

static struct jj_value rsplit_space(struct jj_ev *ev, struct sl_str s, int64_t max)
{
    struct jj_value list = jj_list_new(ev, JJ_LIST, 0);
    for (s = jj_strip(s, NULL, false, true); !ev->failed && s.len > 0; max--) {
        size_t from = max == 0 ? 0 : s.len;
        while (max != 0 && from > 0) {
            size_t back = from - 1, pos;
            while (back > 0 && ((unsigned char)s.data[back] & 0xc0) == 0x80)
                back--;
            pos = back;
            if (jj_is_space(jj_utf8_next(s, &pos)))
                break;
            from = back;
        }
        jj_push(ev, list.u.list, jj_str((struct sl_str){s.data + from, s.len - from}));
        s = jj_strip((struct sl_str){s.data, max == 0 ? 0 : from}, NULL, false, true);
    }
    return list;
}

static void reverse_list(struct jj_list *l)
{
    for (size_t i = 0; i < l->n / 2; i++) {
        struct jj_value v = l->at[i];
        l->at[i] = l->at[l->n - 1 - i];
        l->at[l->n - 1 - i] = v;
    }
}

/* Unlike memmem this is quadratic in the worst case, so that is what it is charged. */
static bool find_last(struct jj_ev *ev, struct sl_str s, struct sl_str what, size_t *at)
{
    if (what.len > s.len || !jj_charge(ev, (s.len - what.len + 1) * what.len / 16))
        return false;
    for (size_t i = s.len - what.len + 1; i-- > 0;)
        if (memcmp(s.data + i, what.data, what.len) == 0) {
            *at = i;
            return true;
        }
    return false;
}

static struct jj_value split(struct jj_ev *ev, struct sl_str s, const struct jj_value *arg,
                             bool from_right)
{
    int64_t max = arg[1].kind == JJ_ABSENT ? -1 : arg[1].kind == JJ_INT ? arg[1].u.i : -2;
    if (max == -2 ||
        (arg[0].kind != JJ_STR && arg[0].kind != JJ_NONE && arg[0].kind != JJ_ABSENT) ||
        (arg[0].kind == JJ_STR && arg[0].u.s.len == 0)) {
        jj_fail(ev, "split wants a separator and a count");
        return jj_undef();
    }
    struct jj_value list;
    if (arg[0].kind != JJ_STR) {
        list = from_right ? rsplit_space(ev, s, max) : split_space(ev, s, max);
    } else {
        struct sl_str sep = arg[0].u.s;
        list = jj_list_new(ev, JJ_LIST, 0);
        size_t at;
        for (; !ev->failed && max != 0; max--) {
            if (!(from_right ? find_last(ev, s, sep, &at) : jj_find(s, sep, 0, &at)))
                break;
            struct sl_str left = {s.data, at},
                          right = {s.data + at + sep.len, s.len - at - sep.len};
            jj_push(ev, list.u.list, jj_str(from_right ? right : left));
            s = from_right ? left : right;
        }
        if (!ev->failed)
            jj_push(ev, list.u.list, jj_str(s));
    }
    if (!ev->failed && from_right)
        reverse_list(list.u.list);
    return list;
}

static struct jj_value strip_method(struct jj_ev *ev, struct sl_str s, const struct jj_value *arg,
                                    bool left, bool right)
{
    if (arg[0].kind == JJ_ABSENT || arg[0].kind == JJ_NONE)
        return jj_str(jj_strip(s, NULL, left, right));
    if (arg[0].kind != JJ_STR) {
        jj_fail(ev, "strip wants a string of characters");
        return jj_undef();
    }
    if (!jj_charge(ev, s.len / 16 * arg[0].u.s.len))
        return jj_undef();
    return jj_str(jj_strip(s, &arg[0].u.s, left, right));
}

static bool has_affix(struct sl_str s, struct sl_str a, bool end)
{
    return a.len <= s.len &&
           (a.len == 0 || memcmp(end ? s.data + s.len - a.len : s.data, a.data, a.len) == 0);
}

static struct jj_value affix(struct jj_ev *ev, struct sl_str s, struct jj_value arg, bool end)
{
    if (arg.kind == JJ_STR)
        return jj_bool(has_affix(s, arg.u.s, end));
    if (arg.kind != JJ_TUPLE) {
        jj_fail(ev, "startswith and endswith want a string or a tuple of strings");
        return jj_undef();
    }
    for (size_t i = 0; i < arg.u.list->n; i++)
        if (arg.u.list->at[i].kind == JJ_STR && has_affix(s, arg.u.list->at[i].u.s, end))
            return jj_bool(true);
    return jj_bool(false);
}

static struct jj_value join_method(struct jj_ev *ev, struct sl_str sep, struct jj_value items)
{
    struct sl_buf b = {.cap_bytes = SL_LIMIT_template_output_bytes};
    struct jj_iter it;
    struct jj_value v;
    bool first = true;
    if (items.kind == JJ_ABSENT || !jj_iter_init(ev, items, &it))
        jj_fail(ev, "join wants something to iterate");
    while (!ev->failed && jj_iter_next(ev, &it, &v)) {
        if (v.kind != JJ_STR)
            jj_fail(ev, "join wants strings, not a %s", jj_kind_name(v));
        else if (!first)
            sl_buf_append(&b, sep.data, sep.len);
        if (!ev->failed)
            sl_buf_append(&b, v.u.s.data, v.u.s.len);
        if (b.failed)
            break;
        first = false;
    }
    return jj_take(ev, &b);
}

static struct jj_value find_method(struct jj_ev *ev, struct sl_str s, struct sl_str what, bool last)
{
    size_t at;
    if (!(last ? find_last(ev, s, what, &at) : jj_find(s, what, 0, &at)))
        return jj_int(-1);
    return jj_int((int64_t)jj_utf8_len((struct sl_str){s.data, at}));
}

static struct jj_value count_method(struct sl_str s, struct sl_str what)
{
    int64_t n = 0;
    if (what.len == 0)
        return jj_int((int64_t)jj_utf8_len(s) + 1);
    for (size_t pos = 0, at; jj_find(s, what, pos, &at); pos = at + what.len)
        n++;
    return jj_int(n);
}

static struct jj_value lines_method(struct jj_ev *ev, struct sl_str s)
{
    struct jj_value list = jj_list_new(ev, JJ_LIST, 0);
    struct sl_str line;
    for (size_t pos = 0; !ev->failed && jj_next_line(s, &pos, &line);)
        jj_push(ev, list.u.list, jj_str(line));
    return list;
}

/* isdigit, isalpha, isalnum, isspace, islower, isupper over the categories of all code points. */
static struct jj_value is_method(struct sl_str s, char what)
{
    bool all = s.len > 0, cased = false;
    for (size_t pos = 0; all && pos < s.len;) {
        uint32_t c = jj_utf8_next(s, &pos);
        utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
        bool digit = k == UTF8PROC_CATEGORY_ND;
        bool alpha = k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
        cased |= is_cased(c);
        all = what == 'd'   ? digit
              : what == 'a' ? alpha
              : what == 'n' ? digit || alpha
              : what == 's' ? jj_is_space(c)
              : what == 'l' ? k != UTF8PROC_CATEGORY_LU && k != UTF8PROC_CATEGORY_LT
                            : k != UTF8PROC_CATEGORY_LL && k != UTF8PROC_CATEGORY_LT;
    }
    return jj_bool(all && ((what != 'l' && what != 'u') || cased));
}

enum {
    M_NONE,
    M_STRIP,
    M_LSTRIP,
    M_RSTRIP,
    M_SPLIT,
    M_RSPLIT,
    M_STARTSWITH,
    M_ENDSWITH,
    M_UPPER,
    M_LOWER,
    M_TITLE,
    M_CAPITALIZE,
    M_REPLACE,
    M_JOIN,
    M_FIND,
    M_RFIND,
    M_COUNT,
    M_SPLITLINES,
    M_ISDIGIT,
    M_ISALPHA,
    M_ISALNUM,
    M_ISSPACE,
    M_ISLOWER,
    M_ISUPPER,
    M_PREFIX,
    M_SUFFIX
};
static const struct {
    const char *name, *spec;
} methods[] = {
    [M_NONE] = {"", ""},
    [M_STRIP] = {"strip", "chars"},
    [M_LSTRIP] = {"lstrip", "chars"},
    [M_RSTRIP] = {"rstrip", "chars"},
    [M_SPLIT] = {"split", "sep maxsplit"},
    [M_RSPLIT] = {"rsplit", "sep maxsplit"},
    [M_STARTSWITH] = {"startswith", "prefix"},
    [M_ENDSWITH] = {"endswith", "suffix"},
    [M_UPPER] = {"upper", ""},
    [M_LOWER] = {"lower", ""},
    [M_TITLE] = {"title", ""},
    [M_CAPITALIZE] = {"capitalize", ""},
    [M_REPLACE] = {"replace", "old new count"},
    [M_JOIN] = {"join", "iterable"},
    [M_FIND] = {"find", "sub"},
    [M_RFIND] = {"rfind", "sub"},
    [M_COUNT] = {"count", "sub"},
    [M_SPLITLINES] = {"splitlines", ""},
    [M_ISDIGIT] = {"isdigit", ""},
    [M_ISALPHA] = {"isalpha", ""},
    [M_ISALNUM] = {"isalnum", ""},
    [M_ISSPACE] = {"isspace", ""},
    [M_ISLOWER] = {"islower", ""},
    [M_ISUPPER] = {"isupper", ""},
    [M_PREFIX] = {"removeprefix", "prefix"},
    [M_SUFFIX] = {"removesuffix", "suffix"},
};

unsigned jj_str_method(struct sl_str name)
{
    for (unsigned i = 1; i < sizeof methods / sizeof *methods; i++)
        if (sl_str_eqz(name, methods[i].name))
            return i;
    return M_NONE;
}

static struct jj_value call_with_strings(struct jj_ev *ev, struct sl_str s, unsigned id,
                                         const struct jj_value *arg)
{
    if (arg[0].kind != JJ_STR || (id == M_REPLACE && arg[1].kind != JJ_STR)) {
        jj_fail(ev, "%s wants a string", methods[id].name);
        return jj_undef();
    }
    struct sl_str a = arg[0].u.s;
    switch (id) {
    case M_REPLACE:
        return jj_replace(ev, s, a, arg[1].u.s, arg[2].kind == JJ_INT ? arg[2].u.i : -1);
    case M_FIND:
    case M_RFIND:
        return find_method(ev, s, a, id == M_RFIND);
    case M_COUNT:
        return count_method(s, a);
    case M_PREFIX:
        return has_affix(s, a, false) ? jj_str((struct sl_str){s.data + a.len, s.len - a.len})
                                      : jj_str(s);
    default:
        return has_affix(s, a, true) ? jj_str((struct sl_str){s.data, s.len - a.len}) : jj_str(s);
    }
}

struct jj_value jj_call_str_method(struct jj_ev *ev, struct sl_str s, unsigned id,
                                   const struct jj_args *args)
{
    struct jj_value arg[JJ_ARGS_MAX];
    if (!jj_bind(ev, methods[id].name, methods[id].spec, args, arg) || !jj_charge(ev, s.len * 4))
        return jj_undef();
    switch (id) {
    case M_STRIP:
    case M_LSTRIP:
    case M_RSTRIP:
        return strip_method(ev, s, arg, id != M_RSTRIP, id != M_LSTRIP);
    case M_SPLIT:
    case M_RSPLIT:
        return split(ev, s, arg, id == M_RSPLIT);
    case M_STARTSWITH:
    case M_ENDSWITH:
        return affix(ev, s, arg[0], id == M_ENDSWITH);
    case M_UPPER:
        return jj_case(ev, s, 'u');
    case M_LOWER:
        return jj_case(ev, s, 'l');
    case M_TITLE:
        return jj_case(ev, s, 't');
    case M_CAPITALIZE:
        return jj_case(ev, s, 'c');
    case M_JOIN:
        return join_method(ev, s, arg[0]);
    case M_SPLITLINES:
        return lines_method(ev, s);
    case M_ISDIGIT:
    case M_ISALPHA:
    case M_ISALNUM:
    case M_ISSPACE:
    case M_ISLOWER:
    case M_ISUPPER:
        return is_method(s, "danslu"[id - M_ISDIGIT]);
    default:
        return call_with_strings(ev, s, id, arg);
    }
}
