/* Runs a fuzz target over the files named on the command line, and over each cut short: what ctest
 * does with a corpus where no libFuzzer is linked. */
#include <dirent.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FILE_MAX (1 << 22)
#define CUTS     64

static size_t n_runs;

/* A copy of its own for every length, so that a sanitizer sees reads past the end. */
static void run(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size + !size);
    if (!copy)
        abort();
    memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
    n_runs++;
}

static void run_file(const char *path)
{
    static uint8_t data[FILE_MAX];
    FILE *f = fopen(path, "re");
    if (!f) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(1);
    }
    size_t size = fread(data, 1, sizeof data, f);
    fclose(f);
    run(data, size);
    for (size_t i = 0; i < CUTS && size; i++)
        run(data, size * i / CUTS);
}

int main(int argc, char **argv)
{
    char path[4096];
    for (int i = 1; i < argc; i++) {
        DIR *dir = opendir(argv[i]);
        struct dirent *e;
        while (dir && (e = readdir(dir))) {
            if (e->d_name[0] == '.')
                continue;
            snprintf(path, sizeof path, "%s/%s", argv[i], e->d_name);
            run_file(path);
        }
        if (dir)
            closedir(dir);
    }
    printf("%zu inputs\n", n_runs);
    return n_runs ? 0 : 1;
}
