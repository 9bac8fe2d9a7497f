// Sums over all pairs of two lists.
#pragma once

#include "cells.h"

// sum_ij u_i v_j sigmoid((a_i - b_j) / temperature) of two weighted lists, returned, by pairs or by cells, whichever is
// cheaper. Slopes, in units of 1 / temperature (multiply by 1 / temperature and the row's own weight for a gradient):
// a_slope_i = sum_j v_j sigmoid'(.), b_slope_j = sum_i u_i sigmoid'(.), both positive, both or neither null.
// Scores are finite; weights above 0 or 0, any scale. No padding or alignment is asked of the arrays.
template <class T>
double all_pairs(const T *a, const T *u, int64_t n, const T *b, const T *v, int64_t m, double temperature,
                 double *a_slope, double *b_slope);
