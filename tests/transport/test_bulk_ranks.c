/* Ranks on both sides: who holds what is told and believed within bounds, every layout of one side
 * is put together from every layout of the other, and a part travels as the whole does. */
#include "bulk_rig.h"

/* --- parts ------------------------------------------------------------------------------------ */

static void test_parts_of_an_ask(void **state)
{
    (void)state;
    const struct sl_bulk_part bad[] = {{0, 0, 0, 1},   {3, 1, 0, 1},   {1, 3, 0, 1},
                                       {0, 3, 0, 0},   {0, 3, 1, 1},   {0, 3, 0, 2},
                                       {~0u, 2, 0, 1}, {1, ~0u, 0, 1}, {0, 1, ~0u, 2}};
    struct sl_bulk_ask ask = {.n_pages = 4, .part = {0, 3, 0, 1}, .n_readers = 1}, got;
    uint8_t bytes[BULK_ASK_BYTES];
    for (size_t i = 0; i <= sizeof bad / sizeof *bad; i++) {
        if (i)
            ask.part = bad[i - 1];
        sl_bulk_ask_put(&ask, &layout, bytes);
        assert_int_equal(sl_bulk_ask_get(bytes, 5, &layout, &got, NULL), i ? SL_INVALID : SL_OK);
    }
    const uint32_t readers[] = {0, SL_LIMIT_ranks + 1u, ~0u};
    for (size_t i = 0; i < 3; i++) {
        ask = (struct sl_bulk_ask){.n_pages = 4, .part = {0, 3, 0, 1}, .n_readers = readers[i]};
        sl_bulk_ask_put(&ask, &layout, bytes);
        assert_int_equal(sl_bulk_ask_get(bytes, 5, &layout, &got, NULL), SL_INVALID);
    }
}

static void test_ranks_as_bytes(void **state)
{
    (void)state;
    const struct sl_bulk_layout l = {1, 16, 4, 6, 100};
    struct sl_bulk_rank in[2] = {{{0, 4, 0, 3}, 2, "shm:/tmp/a,tcp:127.0.0.1:5"},
                                 {{0, 4, 3, 3}, 0, "tcp:127.0.0.1:6"}};
    static struct sl_bulk_rank out[SL_LIMIT_ranks];
    static uint8_t bytes[SL_BULK_RANKS_BYTES + 1], spoiled[SL_BULK_RANKS_BYTES + 1];
    uint32_t n, size = sl_bulk_ranks_put(in, 2, bytes);
    assert_int_equal(sl_bulk_ranks_get(bytes, size, &l, out, &n, NULL), SL_OK);
    assert_int_equal(n, 2);
    assert_memory_equal(&out[0].part, &in[0].part, sizeof in[0].part);
    assert_memory_equal(&out[1].part, &in[1].part, sizeof in[1].part);
    assert_int_equal(out[0].n_readers, 2);
    assert_string_equal(out[0].address, in[0].address);
    assert_string_equal(out[1].address, in[1].address);
    for (uint32_t cut = 0; cut < size; cut++)
        assert_int_equal(sl_bulk_ranks_get(bytes, cut, &l, out, &n, NULL), SL_INVALID);
    assert_int_equal(sl_bulk_ranks_get(bytes, size + 1, &l, out, &n, NULL), SL_INVALID);
    static const struct {
        uint32_t at;
        uint8_t value;
    } bad[] = {{0, 0},  {0, 65},  {3, 1},  {4, 1},    {8, 5},  {12, 4},
               {16, 0}, {20, 65}, {24, 0}, {24, 240}, {27, 1}, {28 + 2, 0}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        memcpy(spoiled, bytes, size);
        spoiled[bad[i].at] = bad[i].value;
        if (sl_bulk_ranks_get(spoiled, size, &l, out, &n, NULL) != SL_INVALID)
            fail_msg("row %zu passes", i);
    }
}

/* Every layout of one side on every layout of the other: each layer and head is fetched once, from
 * somebody who has it. */
static uint32_t grid(uint32_t tp, uint32_t pp, uint32_t n_layers, uint32_t n_heads,
                     struct sl_bulk_rank *out)
{
    for (uint32_t r = 0; r < tp * pp; r++) {
        uint32_t s = r / tp, t = r % tp, first = n_layers * s / pp, head = n_heads * t / tp;
        uint32_t last = (n_heads * (t + 1) + tp - 1) / tp; /* uneven: a head on two ranks */
        out[r] = (struct sl_bulk_rank){
            .part = {first, n_layers * (s + 1) / pp - first, head, last - head}};
    }
    return tp * pp;
}

static void check_cover(const struct sl_bulk_part *mine, const struct sl_bulk_rank *of, uint32_t n)
{
    struct sl_bulk_piece p[SL_LIMIT_ranks];
    uint32_t n_cells = 0, k = sl_bulk_cover(mine, of, n, p, SL_LIMIT_ranks);
    bool seen[16][16] = {{false}};
    assert_true(k > 0);
    for (uint32_t i = 0; i < k; i++)
        for (uint32_t l = 0; l < p[i].part.n_layers; l++)
            for (uint32_t h = 0; h < p[i].part.n_heads; h++, n_cells++) {
                uint32_t layer = p[i].part.layer_first + l, head = p[i].part.head_first + h;
                const struct sl_bulk_part *held = &of[p[i].rank].part;
                assert_true(layer - held->layer_first < held->n_layers);
                assert_true(head - held->head_first < held->n_heads);
                assert_true(layer - mine->layer_first < mine->n_layers);
                assert_true(head - mine->head_first < mine->n_heads);
                assert_false(seen[layer][head]);
                seen[layer][head] = true;
            }
    assert_int_equal(n_cells, mine->n_layers * mine->n_heads);
}

static void test_cover(void **state)
{
    (void)state;
    static struct sl_bulk_rank from[SL_LIMIT_ranks], to[SL_LIMIT_ranks];
    for (uint32_t a = 0; a < 36; a++)
        for (uint32_t b = 0; b < 36; b++)
            for (uint32_t heads = 1; heads < 6; heads++) {
                uint32_t n = grid(a % 6 + 1, a / 6 + 1, 7, heads, from);
                uint32_t m = grid(b % 6 + 1, b / 6 + 1, 7, heads, to);
                for (uint32_t r = 0; r < m; r++)
                    check_cover(&to[r].part, from, n);
            }
    const struct sl_bulk_part whole = {0, 7, 0, 5};
    struct sl_bulk_piece p[SL_LIMIT_ranks];
    uint32_t n = grid(3, 2, 7, 5, from);
    assert_int_equal(sl_bulk_cover(&whole, from, n, p, 5), 0); /* six are needed */
    assert_int_equal(sl_bulk_cover(&whole, from, n, p, 6), 6);
    for (uint32_t without = 0; without < n; without++) {
        struct sl_bulk_rank some[6];
        memcpy(some, from, sizeof some);
        some[without].part.n_heads = some[without].part.n_layers = 1; /* of something else */
        some[without].part.layer_first = 0;
        some[without].part.head_first = 0;
        if (without % 3 == 2 || without >= 3) /* others do not have its heads, or its layers */
            assert_int_equal(sl_bulk_cover(&whole, some, n, p, SL_LIMIT_ranks), 0);
    }
}

/* Some layers and heads of the pages travel as if there were no others. */
static void test_a_part_travels(void **state)
{
    (void)state;
    const struct sl_bulk_part parts[] = {{0, 3, 0, 4}, {1, 2, 0, 1}, {0, 1, 3, 1}, {2, 1, 1, 2}};
    layout.n_heads = 4;
    layout.head_bytes = 1000;
    for (size_t v = 0; v < 2; v++)
        for (size_t i = 0; i < 4; i++) {
            source_fill(&src, 20 + i);
            src.late = 3;
            struct sl_bulk_server *s = serve(VIA(v), "key");
            struct sl_bulk_fetched got;
            struct sl_err err = {0};
            struct sl_bulk_fetch f = fetch_of(sl_bulk_server_address(s), 1, N_PAGES);
            f.ask.part = parts[i];
            f.silence_ms = 20000;
            sink.rows = calloc(1, rows_bytes());
            if (sl_bulk_fetch(&f, &got, &err))
                fail_msg("part %zu: %s", i, err.msg);
            assert_int_equal(got.n_complete, N_PAGES - 1);
            assert_int_equal(got.n_bytes, (uint64_t)(N_PAGES - 1) * parts[i].n_layers *
                                              parts[i].n_heads * layout.head_bytes);
            for (uint32_t page = 1; page < N_PAGES; page++)
                for (uint32_t l = 0; l < N_LAYERS; l++) {
                    bool has = l - parts[i].layer_first < parts[i].n_layers;
                    const uint8_t *want = src.rows + row_offset(page, l) +
                                          (size_t)parts[i].head_first * layout.head_bytes;
                    const uint8_t *came = sink.rows + row_offset(page, l);
                    for (size_t k = 0; k < (size_t)layout.n_heads * layout.head_bytes; k++)
                        assert_int_equal(
                            came[k],
                            has && k < (size_t)parts[i].n_heads * layout.head_bytes ? want[k] : 0);
                }
            free(sink.rows);
            sl_bulk_server_close(s);
            assert_int_equal(src.n_open, src.n_closed);
        }
    layout.n_heads = 1;
    layout.head_bytes = ROW;
}

static void test_map(void **state)
{
    (void)state;
    static struct sl_bulk_rank out[SL_LIMIT_ranks];
    for (size_t v = 0; v < 2; v++) {
        source_fill(&src, 30);
        struct sl_bulk_server *s = serve_with(VIA(v), "key", 0);
        struct sl_err err = {0};
        uint32_t n;
        struct sl_bulk_fetch f = fetch_of(sl_bulk_server_address(s), 0, 1);
        assert_int_equal(sl_bulk_map(&f, out, &n, &err), SL_NOT_FOUND); /* it has none to tell */
        sl_bulk_server_close(s);
        s = serve(VIA(v), "key");
        f = fetch_of(sl_bulk_server_address(s), 0, 1);
        src.n_map = 3;
        src.late_map = 3; /* not all ranks have said where they are */
        for (uint32_t i = 0; i < 3; i++)
            src.map[i] = (struct sl_bulk_rank){.part = {i, 1, 0, 1}, .address = "tcp:127.0.0.1:1"};
        if (sl_bulk_map(&f, out, &n, &err))
            fail_msg("%s", err.msg);
        assert_int_equal(n, 3);
        assert_int_equal(src.late_map, 0);
        assert_memory_equal(&out[2].part, &src.map[2].part, sizeof out[2].part);
        src.map[1].part.n_heads = 2; /* more than the layout has */
        assert_int_equal(sl_bulk_map(&f, out, &n, &err), SL_INVALID);
        src.map[1].part.n_heads = 1;
        f.layout.class_hash++;
        assert_int_not_equal(sl_bulk_map(&f, out, &n, &err), SL_OK);
        sl_bulk_server_close(s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parts_of_an_ask),
        cmocka_unit_test(test_ranks_as_bytes),
        cmocka_unit_test(test_cover),
        cmocka_unit_test(test_a_part_travels),
        cmocka_unit_test(test_map),
    };
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    free(src.rows);
    return rc;
}
