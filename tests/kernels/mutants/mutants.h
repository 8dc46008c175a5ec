/* A small run of each kernel, whose output tells its mutants by numbers. */
#ifndef TESTS_KERNELS_MUTANTS_H
#define TESTS_KERNELS_MUTANTS_H

#include <stddef.h>
#include <stdint.h>

#include "cuda/launch.h"

/* What a case's kernels gave. */
struct output {
    uint8_t *bytes;
    size_t n;
};

struct mutant_case {
    const char *kernel;
    void (*run)(struct output *out);
};
extern const struct mutant_case mutant_cases[];
extern const size_t n_mutant_cases;
void mutant_case_run(const struct mutant_case *c, struct output *out);

#endif
