/* Decimal text of binary floating point: the shortest digits that read back as the same number. */
#ifndef SLUICE_BASE_NUMBER_PRIV_H
#define SLUICE_BASE_NUMBER_PRIV_H

#include <stddef.h>

#define NUMBER_TEXT_MAX 40 /* bytes, the NUL included */

/* Both write JSON number text for a finite x and return its length. An integral double is written
 * with ".0", so that it reads back as a real. */
size_t number_f32(float x, char out[NUMBER_TEXT_MAX]);
size_t number_f64(double x, char out[NUMBER_TEXT_MAX]);

#endif
