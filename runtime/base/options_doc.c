/* What the option table says to people: help text, manual page (man(7) macros), bash completion. */
#include "options_priv.h"

#include <stdio.h>
#include <string.h>

#define HELP_COLUMN 34
#define HELP_WIDTH  100

/* "--x N", "--[no-]x", "--x a|b" */
static void put_flag(const struct sl_option *row, struct sl_buf *out)
{
    bool on = row->kind == SL_OPT_FLAG && row->def && strcmp(row->def, "true") == 0;
    sl_buf_printf(out, "--%s%s", on ? "[no-]" : "", row->name);
    if (row->kind == SL_OPT_CHOICE)
        sl_buf_printf(out, " %s", row->meta ? row->meta : row->choices);
    else if (row->kind != SL_OPT_FLAG)
        sl_buf_printf(out, " %s", row->meta ? row->meta : "VALUE");
}

/* The help line with its default, which says nothing for a flag that is off. */
static void put_help(const struct sl_option *row, struct sl_buf *out)
{
    sl_buf_puts(out, row->help ? row->help : "");
    if (row->kind == SL_OPT_CHOICE && row->meta)
        sl_buf_printf(out, ": %s", row->choices);
    if (row->def && *row->def && row->kind != SL_OPT_FLAG)
        sl_buf_printf(out, " (default %s)", row->def);
}

static bool is_hidden(const struct sl_option *row)
{
    return row->help && !*row->help;
}

/* Words of `text` from HELP_COLUMN on, broken at HELP_WIDTH; `column` is where the line stands. */
static void put_wrapped(const char *text, size_t column, struct sl_buf *out)
{
    if (column + 2 > HELP_COLUMN) {
        sl_buf_putc(out, '\n');
        column = 0;
    }
    sl_buf_printf(out, "%*s", (int)(HELP_COLUMN - column), "");
    column = HELP_COLUMN;
    while (*text) {
        size_t len = strcspn(text, " ");
        if (column > HELP_COLUMN && column + 1 + len > HELP_WIDTH) {
            sl_buf_printf(out, "\n%*s", HELP_COLUMN, "");
            column = HELP_COLUMN;
        } else if (column > HELP_COLUMN) {
            sl_buf_putc(out, ' ');
            column++;
        }
        sl_buf_append(out, text, len);
        column += len;
        text += len + strspn(text + len, " ");
    }
    sl_buf_putc(out, '\n');
}

void sl_options_help(const struct sl_option *table, size_t n_table, struct sl_buf *out)
{
    struct sl_buf flag = {0}, help = {0};
    for (size_t i = 0; i < n_table; i++) {
        if (is_hidden(&table[i]))
            continue;
        sl_buf_clear(&flag);
        sl_buf_clear(&help);
        sl_buf_puts(&flag, "  ");
        put_flag(&table[i], &flag);
        put_help(&table[i], &help);
        if (flag.failed || help.failed) {
            out->failed = true;
            break;
        }
        sl_buf_append(out, flag.data, flag.len);
        put_wrapped(help.len ? help.data : "", flag.len, out);
    }
    sl_buf_free(&flag);
    sl_buf_free(&help);
}

/* Text for roff: backslashes and dashes escaped, no line taken for a request. */
static void put_roff(const char *text, struct sl_buf *out)
{
    bool line_start = true;
    for (const char *p = text; *p; p++) {
        if (line_start && (*p == '.' || *p == '\''))
            sl_buf_puts(out, "\\&");
        line_start = *p == '\n';
        if (line_start && p[1] == '\n') {
            sl_buf_puts(out, "\n.PP");
            continue;
        }
        if (*p == '\\')
            sl_buf_puts(out, "\\e");
        else if (*p == '-')
            sl_buf_puts(out, "\\-");
        else
            sl_buf_putc(out, *p);
    }
}

static void put_roff_upper(const char *text, struct sl_buf *out)
{
    for (const char *p = text; *p; p++)
        sl_buf_putc(out, *p >= 'a' && *p <= 'z' ? (char)(*p - 'a' + 'A') : *p);
}

static void put_man_options(const struct sl_verb_doc *doc, struct sl_buf *out)
{
    struct sl_buf text = {0};
    sl_buf_puts(out, ".SH OPTIONS\n");
    for (size_t i = 0; i < doc->n_table; i++) {
        char name[OPTIONS_VARIABLE_MAX];
        if (is_hidden(&doc->table[i]))
            continue;
        sl_buf_puts(out, ".TP\n.B ");
        sl_buf_clear(&text);
        put_flag(&doc->table[i], &text);
        put_roff(text.len ? text.data : "", out);
        sl_buf_putc(out, '\n');
        sl_buf_clear(&text);
        put_help(&doc->table[i], &text);
        put_roff(text.len ? text.data : "", out);
        options_variable(&doc->table[i], name);
        sl_buf_printf(out, "\n.br\nEnvironment: %s\n", name);
        out->failed = out->failed || text.failed;
    }
    sl_buf_free(&text);
}

static void put_man_exit_codes(struct sl_buf *out)
{
    sl_buf_puts(out, ".SH EXIT STATUS\n");
    for (int code = 0; code < 10; code++) {
        int s = 0;
        while (s < SL_N_STATUS && sl_status_row((enum sl_status)s)->exit_code != code)
            s++;
        if (s == SL_N_STATUS)
            continue;
        sl_buf_printf(out, ".TP\n.B %d\n", code);
        put_roff(sl_status_row((enum sl_status)s)->text, out);
        sl_buf_putc(out, '\n');
    }
}

void sl_options_man(const struct sl_verb_doc *doc, struct sl_buf *out)
{
    sl_buf_puts(out, ".TH SLUICE\\-");
    put_roff_upper(doc->verb, out);
    sl_buf_puts(out, " 1 \"\" \"sluice " SLUICE_VERSION "\" \"User Commands\"\n.SH NAME\n");
    sl_buf_printf(out, "sluice\\-%s \\- ", doc->verb);
    put_roff(doc->summary, out);
    sl_buf_printf(out, "\n.SH SYNOPSIS\n.B sluice %s\n[options] ", doc->verb);
    put_roff(doc->operands, out);
    sl_buf_putc(out, '\n');
    if (doc->text) {
        sl_buf_puts(out, ".SH DESCRIPTION\n");
        put_roff(doc->text, out);
        sl_buf_putc(out, '\n');
    }
    put_man_options(doc, out);
    if (options_find(doc->table, doc->n_table, SL_STR("config")))
        sl_buf_puts(out, ".SH FILES\nThe file named by \\-\\-config is a YAML mapping whose keys "
                         "are the option names without dashes in front. The command line has "
                         "precedence over the environment, the environment over the file.\n");
    put_man_exit_codes(out);
}

/* compgen over a word list, as one case branch's body. */
static void put_compgen_open(struct sl_buf *out)
{
    sl_buf_puts(out, "COMPREPLY=($(compgen -W \"");
}

static void put_compgen_close(struct sl_buf *out)
{
    sl_buf_puts(out, "\" -- \"$cur\"))");
}

/* What may follow "--x": the choices, a file name, or nothing known. */
static void put_value_cases(const struct sl_verb_doc *doc, struct sl_buf *out)
{
    for (size_t i = 0; i < doc->n_table; i++) {
        const struct sl_option *row = &doc->table[i];
        if (row->kind == SL_OPT_FLAG || is_hidden(row))
            continue;
        sl_buf_printf(out, "    '%s --%s') ", doc->verb, row->name);
        if (row->kind == SL_OPT_CHOICE) {
            put_compgen_open(out);
            for (const char *p = row->choices; *p; p++)
                sl_buf_putc(out, *p == '|' ? ' ' : *p);
            put_compgen_close(out);
            sl_buf_puts(out, "; ");
        } else if (row->kind == SL_OPT_STRING) {
            sl_buf_puts(out, "COMPREPLY=($(compgen -f -- \"$cur\")); ");
        }
        sl_buf_puts(out, "return ;;\n");
    }
}

static void put_flag_cases(const struct sl_verb_doc *doc, struct sl_buf *out)
{
    sl_buf_printf(out, "    '%s -'*) ", doc->verb);
    put_compgen_open(out);
    for (size_t i = 0; i < doc->n_table; i++) {
        const struct sl_option *row = &doc->table[i];
        if (is_hidden(row))
            continue;
        sl_buf_printf(out, "%s--%s", i ? " " : "", row->name);
        if (row->kind == SL_OPT_FLAG && row->def && strcmp(row->def, "true") == 0)
            sl_buf_printf(out, " --no-%s", row->name);
    }
    put_compgen_close(out);
    sl_buf_puts(out, "; return ;;\n");
}

void sl_options_complete(const struct sl_verb_doc *docs, size_t n_docs, struct sl_buf *out)
{
    sl_buf_puts(out, "# bash completion for sluice\n"
                     "_sluice()\n{\n"
                     "    local cur=${COMP_WORDS[COMP_CWORD]} verb=${COMP_WORDS[1]}\n"
                     "    local prev=${COMP_WORDS[COMP_CWORD-1]}\n"
                     "    COMPREPLY=()\n"
                     "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n        ");
    put_compgen_open(out);
    for (size_t i = 0; i < n_docs; i++)
        sl_buf_printf(out, "%s%s", i ? " " : "", docs[i].verb);
    put_compgen_close(out);
    sl_buf_puts(out, "\n        return\n    fi\n    case \"$verb $prev\" in\n");
    for (size_t i = 0; i < n_docs; i++)
        put_value_cases(&docs[i], out);
    sl_buf_puts(out, "    esac\n    case \"$verb $cur\" in\n");
    for (size_t i = 0; i < n_docs; i++)
        put_flag_cases(&docs[i], out);
    sl_buf_puts(out, "    esac\n    COMPREPLY=($(compgen -f -- \"$cur\"))\n}\n"
                     "complete -o filenames -F _sluice sluice\n");
}
