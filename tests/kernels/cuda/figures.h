/* Figures of index functions: what tests enumerated, the worst of each name, for the gates' report
 * (tests/gates). The test asserts; this remembers. */
#ifndef TESTS_KERNELS_CUDA_FIGURES_H
#define TESTS_KERNELS_CUDA_FIGURES_H

#include <algorithm>
#include <cstdio>
#include <map>
#include <string>

static std::map<std::string, size_t> figures;

/* Lanes that one bank keeps waiting, or sectors beyond the fewest; returns it. */
static inline size_t figure(const char *kind, const char *access, size_t value)
{
    size_t &worst = figures[std::string(kind) + "\t" + access];
    worst = std::max(worst, value);
    return value;
}

static inline void figures_write(const char *path)
{
    FILE *f = std::fopen(path, "w");
    for (const auto &[name, worst] : figures)
        if (f)
            std::fprintf(f, "%s\t%zu\n", name.c_str(), worst);
    if (f)
        std::fclose(f);
}

#endif
