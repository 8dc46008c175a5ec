/* What a warp does as one is what its scalar definition says, under every order: shuffles, votes
 * and reductions of whole and of partial warps, matrix loads, matrix products (against sums in
 * double and in integers, by the fragments' layouts of PTX ISA 9.0, 9.7.15.5), asynchronous copies.
 */
#include "orders.h"

#include <math.h>
#include <vector>

static uint32_t mix(uint32_t x)
{
    x = (x ^ x >> 16) * 0x7feb352du; /* Wellons' lowbias32 */
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

/* ---- shuffles and votes ---- */

constexpr uint32_t N_SHUFFLES = 10;

__global__ void shuffle(const uint32_t *in, uint32_t *out)
{
    uint32_t i = threadIdx.x, lane = i % 32, v = in[i], *to = out + i * N_SHUFFLES;
    to[0] = __shfl_sync(FULL_WARP, v, 7);
    to[1] = __shfl_sync(FULL_WARP, v, (int)(lane * 5 + 3));
    to[2] = __shfl_xor_sync(FULL_WARP, v, 9);
    to[3] = __shfl_down_sync(FULL_WARP, v, 3);
    to[4] = __shfl_up_sync(FULL_WARP, v, 5);
    to[5] = __ballot_sync(FULL_WARP, v & 1);
    to[6] = __any_sync(FULL_WARP, v % 37 == 0);
    to[7] = __all_sync(FULL_WARP, v % 37 != 0);
    uint32_t half = lane < 16 ? 0xffffu : 0xffff0000u;
    to[8] = __shfl_xor_sync(half, v, 15);
    to[9] = __ballot_sync(half, v & 1);
}

static void shuffles_and_votes_move_the_named_lanes_values(void **state)
{
    (void)state;
    constexpr uint32_t N = 96;
    std::vector<uint32_t> in(N), out(N * N_SHUFFLES);
    for (uint32_t i = 0; i < N; i++)
        in[i] = mix(i);
    assert_ran(KLAUNCH(shuffle, 1, N, 0, nullptr, in.data(), out.data()));
    for (uint32_t i = 0; i < N; i++) {
        const uint32_t *v = &in[i / 32 * 32], *got = &out[i * N_SHUFFLES], lane = i % 32;
        uint32_t odd = 0, any = 0;
        for (uint32_t j = 0; j < 32; j++) {
            odd |= (v[j] & 1) << j;
            any |= v[j] % 37 == 0;
        }
        assert_int_equal(got[0], v[7]);
        assert_int_equal(got[1], v[(lane * 5 + 3) % 32]);
        assert_int_equal(got[2], v[lane ^ 9]);
        assert_int_equal(got[3], v[lane + 3 < 32 ? lane + 3 : lane]);
        assert_int_equal(got[4], v[lane >= 5 ? lane - 5 : lane]);
        assert_int_equal(got[5], odd);
        assert_int_equal(got[6], any);
        assert_int_equal(got[7], !any);
        assert_int_equal(got[8], v[lane ^ 15]);
        assert_int_equal(got[9], odd & (lane < 16 ? 0xffffu : 0xffff0000u));
    }
}

/* Groups of a warp, each in its own loop of its own length. */
__global__ void sum_groups(const uint32_t *in, uint32_t *out)
{
    uint32_t lane = threadIdx.x, base = lane < 8 ? 0 : lane < 24 ? 8 : 24;
    uint32_t n = base == 8 ? 16 : 8, mask = (n == 16 ? 0xffffu : 0xffu) << base, v = in[lane];
    for (uint32_t x = n / 2; x; x /= 2)
        v += __shfl_sync(mask, v, (int)(base + ((lane - base) ^ x)));
    out[lane] = v;
}

static void parts_of_a_warp_go_their_own_ways(void **state)
{
    (void)state;
    uint32_t in[32], out[32], sums[3] = {0, 0, 0};
    for (uint32_t i = 0; i < 32; i++) {
        in[i] = mix(i) >> 8;
        sums[i < 8 ? 0 : i < 24 ? 1 : 2] += in[i];
    }
    assert_ran(KLAUNCH(sum_groups, 1, 32, 0, nullptr, in, out));
    for (uint32_t i = 0; i < 32; i++)
        assert_int_equal(out[i], sums[i < 8 ? 0 : i < 24 ? 1 : 2]);
}

__global__ void reduce(const float *in, const int32_t *ints, float *out, int32_t *sum)
{
    uint32_t i = threadIdx.x;
    out[2 * i] = dev_warp_sum(in[i]);
    out[2 * i + 1] = dev_warp_max(in[i]);
    sum[i] = dev_warp_sum(ints[i]);
}

static void reductions_add_by_halves(void **state)
{
    (void)state;
    float in[64], out[128];
    int32_t ints[64], sum[64];
    for (uint32_t i = 0; i < 64; i++) {
        ints[i] = (int32_t)mix(i);
        in[i] = (float)ints[i] * 0x1p-20f;
    }
    assert_ran(KLAUNCH(reduce, 1, 64, 0, nullptr, in, ints, out, sum));
    for (uint32_t w = 0; w < 2; w++) {
        float v[32], max = in[32 * w];
        uint32_t total = 0;
        memcpy(v, in + 32 * w, sizeof v);
        for (uint32_t i = 0; i < 32; i++) {
            total += (uint32_t)ints[32 * w + i];
            max = v[i] > max ? v[i] : max;
        }
        for (uint32_t n = 16; n; n /= 2)
            for (uint32_t i = 0; i < n; i++)
                v[i] = v[i] + v[i + n];
        for (uint32_t i = 32 * w; i < 32 * w + 32; i++) {
            assert_memory_equal(&out[2 * i], &v[0], 4);
            assert_memory_equal(&out[2 * i + 1], &max, 4);
            assert_int_equal((uint32_t)sum[i], total);
        }
    }
}

/* ---- matrix loads ---- */

/* Row r of matrix m holds 1000 m + 10 r + column; rows lie scrambled. */
__global__ void load_matrices(uint32_t *out)
{
    SHARED_ARRAY(uint16_t, s, 32 * 16);
    uint32_t lane = threadIdx.x;
    uint16_t *row = s + (lane * 7 % 32) * 16;
    for (uint32_t c = 0; c < 8; c++)
        row[c] = (uint16_t)(1000 * (lane / 8) + 10 * (lane % 8) + c);
    __syncwarp();
    dev_ldmatrix_x4(*reinterpret_cast<uint32_t(*)[4]>(out + lane * 16), row);
    dev_ldmatrix_x4_trans(*reinterpret_cast<uint32_t(*)[4]>(out + lane * 16 + 4), row);
    dev_ldmatrix_x2(*reinterpret_cast<uint32_t(*)[2]>(out + lane * 16 + 8), row);
}

static void matrix_loads_deal_out_rows_or_columns(void **state)
{
    (void)state;
    std::vector<uint32_t> out(32 * 16);
    assert_ran(KLAUNCH(load_matrices, 1, 32, 0, nullptr, out.data()));
    for (uint32_t lane = 0; lane < 32; lane++)
        for (uint32_t m = 0; m < 4; m++) {
            uint32_t r = lane / 4, c = lane % 4 * 2, at = 1000 * m + 10 * r + c;
            uint32_t across = 1000 * m + 10 * c + r;
            assert_int_equal(out[lane * 16 + m], at | (at + 1) << 16);
            assert_int_equal(out[lane * 16 + 4 + m], across | (across + 10) << 16);
            if (m < 2)
                assert_int_equal(out[lane * 16 + 8 + m], at | (at + 1) << 16);
        }
}

/* ---- matrix products ---- */

/* a [16][16], b [16][8], c [16][8] of bf16 (F16: f16) and float. */
template <bool F16> __global__ void multiply_16(const uint16_t *a, const uint16_t *b, float *c)
{
    uint32_t g = threadIdx.x / 4, t = threadIdx.x % 4, ra[4], rb[2];
    float d[4];
    for (uint32_t i = 0; i < 4; i++) {
        const uint16_t *p = a + (g + 8 * (i % 2)) * 16 + 2 * t + 8 * (i / 2);
        ra[i] = p[0] | (uint32_t)p[1] << 16;
        d[i] = c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
    }
    for (uint32_t i = 0; i < 2; i++) {
        const uint16_t *p = b + (2 * t + 8 * i) * 8 + g;
        rb[i] = p[0] | (uint32_t)p[8] << 16;
    }
    if (F16)
        dev_mma_f16(d, ra, rb);
    else
        dev_mma_bf16(d, ra, rb);
    for (uint32_t i = 0; i < 4; i++)
        c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = d[i];
}

static void check_product_16(bool f16)
{
    uint16_t a[16 * 16], b[16 * 8];
    float c[16 * 8], want[16 * 8];
    auto from = [&](uint16_t h) { return f16 ? dev_from_f16(h) : dev_from_bf16(h); };
    auto to = [&](uint32_t i) {
        float v = (float)(int32_t)mix(i) * 0x1p-31f;
        return f16 ? dev_to_f16(v) : dev_to_bf16(v);
    };
    for (uint32_t i = 0; i < 256; i++)
        a[i] = to(i);
    for (uint32_t i = 0; i < 128; i++) {
        b[i] = to(1000 + i);
        c[i] = (float)i;
    }
    for (uint32_t i = 0; i < 128; i++) {
        double sum = (double)c[i];
        for (uint32_t k = 0; k < 16; k++)
            sum += (double)from(a[i / 8 * 16 + k]) * (double)from(b[k * 8 + i % 8]);
        want[i] = (float)sum;
    }
    if (f16)
        assert_ran(KLAUNCH(multiply_16<true>, 1, 32, 0, nullptr, a, b, c));
    else
        assert_ran(KLAUNCH(multiply_16<false>, 1, 32, 0, nullptr, a, b, c));
    assert_memory_equal(c, want, sizeof c);
}

static void products_of_halves_are_the_matrices(void **state)
{
    (void)state;
    check_product_16(true);
    check_product_16(false);
}

/* a [16][32], b [8][32] (columns), c [16][8] */
__global__ void multiply_8(const int8_t *a, const int8_t *b, int32_t *c)
{
    uint32_t g = threadIdx.x / 4, t = threadIdx.x % 4, ra[4], rb[2];
    int32_t d[4];
    for (uint32_t i = 0; i < 4; i++) {
        memcpy(&ra[i], a + (g + 8 * (i % 2)) * 32 + 4 * t + 16 * (i / 2), 4);
        d[i] = c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
    }
    for (uint32_t i = 0; i < 2; i++)
        memcpy(&rb[i], b + g * 32 + 4 * t + 16 * i, 4);
    dev_mma_s8(d, ra, rb);
    for (uint32_t i = 0; i < 4; i++)
        c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = d[i];
}

static void products_of_bytes_are_exact_and_wrap(void **state)
{
    (void)state;
    int8_t a[16 * 32], b[8 * 32];
    int32_t c[128], want[128];
    for (uint32_t i = 0; i < 512; i++)
        a[i] = i < 32 ? (int8_t)-128 : (int8_t)mix(i);
    for (uint32_t i = 0; i < 256; i++)
        b[i] = i < 32 ? (int8_t)-128 : (int8_t)mix(1000 + i);
    for (uint32_t i = 0; i < 128; i++) {
        uint32_t sum = i == 0 ? 0x7fffffffu : i;
        c[i] = (int32_t)sum;
        for (uint32_t k = 0; k < 32; k++)
            sum += (uint32_t)(a[i / 8 * 32 + k] * b[i % 8 * 32 + k]);
        want[i] = (int32_t)sum;
    }
    assert_ran(KLAUNCH(multiply_8, 1, 32, 0, nullptr, a, b, c));
    assert_memory_equal(c, want, sizeof c);
}

/* ---- asynchronous copies ---- */

/* What a thread finds of its own copies: before it waits, with one group left, with none. */
__global__ void copy_pieces(const uint32_t *in, uint32_t *out)
{
    SHARED_ARRAY(uint32_t, s, 12);
    uint32_t *to = out + threadIdx.x * 12;
    if (threadIdx.x != 0)
        return;
    for (int i = 0; i < 12; i++)
        s[i] = 7;
    dev_copy16(s, in);
    dev_copy_commit();
    dev_copy16(s + 4, in + 4, 6);
    dev_copy4(s + 8, in + 8);
    dev_copy_commit();
    dev_copy4(s + 9, in + 9, 0);
    to[0] = s[0];
    dev_copy_wait<1>();
    to[1] = s[3];
    to[2] = s[8];
    dev_copy_wait<0>();
    for (int i = 3; i < 12; i++)
        to[i] = s[i];
}

static void copies_come_at_once_or_as_late_as_they_may(void **state)
{
    (void)state;
    alignas(16) uint32_t in[12], out[12];
    bool eager = direct_options.seed & 1;
    for (uint32_t i = 0; i < 12; i++)
        in[i] = 0x01010101u * (i + 1);
    assert_ran(KLAUNCH(copy_pieces, 1, 1, 0, nullptr, in, out));
    assert_int_equal(out[0], eager ? in[0] : 7);
    assert_int_equal(out[1], in[3]);
    assert_int_equal(out[2], eager ? in[8] : 7);
    assert_int_equal(out[4], in[4]);
    assert_int_equal(out[5], in[5] & 0xffff); /* 6 of 16 bytes, the others zero */
    assert_int_equal(out[6] | out[7], 0);
    assert_int_equal(out[8], in[8]);
    assert_int_equal(out[9], eager ? 0 : 7); /* in no group that was waited for */
    assert_int_equal(out[10], 7);
}

int main()
{
    const CMUnitTest tests[] = {
        ORDERED(shuffles_and_votes_move_the_named_lanes_values),
        ORDERED(parts_of_a_warp_go_their_own_ways),
        ORDERED(reductions_add_by_halves),
        ORDERED(matrix_loads_deal_out_rows_or_columns),
        ORDERED(products_of_halves_are_the_matrices),
        ORDERED(products_of_bytes_are_exact_and_wrap),
        ORDERED(copies_come_at_once_or_as_late_as_they_may),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
