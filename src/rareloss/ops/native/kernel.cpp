// The one translation unit of the kernel: the C interface, for float (f32) and double (f64). What is missing here
// stands at the end of the file that computes it.
#include "average_precision.h"
#include "exact.h"
#include "focal.h"
#include "log_odds.h"
#include "partial_auc.h"
#include "recall.h"
#include "soft_count.h"

#define RARELOSS_RANKING(suffix, T)                                                                                 \
    RARELOSS_API int rareloss_average_precision_##suffix(const Pool *pool) { return average_precision<T>(pool); }    \
    RARELOSS_API int rareloss_recall_##suffix(const Pool *pool, double quantile, int among_negatives,                \
                                              double *threshold) {                                                   \
        return recall<T>(pool, quantile, among_negatives, threshold);                                                \
    }                                                                                                                \
    RARELOSS_API int rareloss_partial_auc_##suffix(const Pool *pool, double alpha, double beta) {                    \
        return partial_auc<T>(pool, alpha, beta);                                                                    \
    }                                                                                                                \
    RARELOSS_API int rareloss_soft_count_##suffix(                                                                   \
        const T *scores, const T *weights, int64_t weight_pool_stride, int64_t weight_set_stride, const T *at,       \
        int64_t pools, int64_t sets, int64_t rows, int64_t points, double temperature, T *count, T *slope,           \
        int threads) {                                                                                               \
        return soft_count<T>({scores, weights, weight_pool_stride, weight_set_stride, at, pools, sets, rows, points, \
                              temperature, count, slope}, threads);                                                  \
    }                                                                                                                \
    RARELOSS_API int rareloss_sort_##suffix(const T *values, int64_t n, T *sorted, int64_t *order) {                 \
        return sort_into(values, n, sorted, order);                                                                  \
    }
RARELOSS_RANKING(f32, float)
RARELOSS_RANKING(f64, double)
