/* The nearest known word, by the optimal string alignment distance (Levenshtein with swaps of
 * neighbours). */
#include <sluice/base/options.h>

#include <string.h>

#define WORD_MAX 64

static size_t min2(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Both at most WORD_MAX bytes. Three rows of the table are enough. */
static size_t distance(const char *a, size_t n_a, const char *b, size_t n_b)
{
    size_t rows[3][WORD_MAX + 1];
    size_t *before = rows[0], *above = rows[1], *row = rows[2];
    for (size_t j = 0; j <= n_b; j++)
        before[j] = above[j] = j;
    for (size_t i = 1; i <= n_a; i++) {
        row[0] = i;
        for (size_t j = 1; j <= n_b; j++) {
            row[j] = min2(above[j - 1] + (a[i - 1] != b[j - 1]), min2(above[j], row[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = min2(row[j], before[j - 2] + 1);
        }
        size_t *spare = before;
        before = above;
        above = row;
        row = spare;
    }
    return above[n_b];
}

/* Near: at most a third of the longer word and one more is wrong, and something is right. */
const char *sl_suggest(const char *word, const char *const *names)
{
    size_t n_word = strlen(word);
    const char *best = NULL;
    size_t best_distance = 0;
    if (!n_word || n_word > WORD_MAX)
        return NULL;
    for (; *names; names++) {
        size_t n_name = strlen(*names);
        size_t longer = n_name > n_word ? n_name : n_word;
        if (n_name > WORD_MAX)
            continue;
        size_t d = distance(word, n_word, *names, n_name);
        if (d > longer / 3 + 1 || d >= min2(n_word, n_name) || (best && d >= best_distance))
            continue;
        best = *names;
        best_distance = d;
    }
    return best;
}
