// The one translation unit of the kernel: the C interface, for float (f32) and double (f64).
#include "average_precision.h"
#include "soft_count.h"
#include "sort.h"

RARELOSS_API int rareloss_average_precision_f32(const Pool *pool) { return average_precision<float>(pool); }
RARELOSS_API int rareloss_average_precision_f64(const Pool *pool) { return average_precision<double>(pool); }

#define RARELOSS_SOFT_COUNT(name, T) \
    RARELOSS_API int name(const T *scores, const T *weights, int64_t weight_pool_stride, int64_t weight_set_stride, \
                          const T *at, int64_t pools, int64_t sets, int64_t rows, int64_t points, double temperature, \
                          T *count, T *slope, int threads) { \
        return soft_count<T>({scores, weights, weight_pool_stride, weight_set_stride, at, pools, sets, rows, points, \
                              temperature, count, slope}, threads); \
    }
RARELOSS_SOFT_COUNT(rareloss_soft_count_f32, float)
RARELOSS_SOFT_COUNT(rareloss_soft_count_f64, double)

RARELOSS_API int rareloss_sort_f32(const float *values, int64_t n, float *sorted, int64_t *order) {
    return sort_into(values, n, sorted, order);
}
RARELOSS_API int rareloss_sort_f64(const double *values, int64_t n, double *sorted, int64_t *order) {
    return sort_into(values, n, sorted, order);
}

// Each of these has its part of the C interface at its end.
#if __has_include("recall.h")
#include "recall.h"
#endif
#if __has_include("partial_auc.h")
#include "partial_auc.h"
#endif
#if __has_include("log_odds.h")
#include "log_odds.h"
#endif
#if __has_include("focal.h")
#include "focal.h"
#endif
#if __has_include("exact.h")
#include "exact.h"
#endif
