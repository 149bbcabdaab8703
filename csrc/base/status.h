/* Status codes and the last-error sentence.
 *
 * Every function that can fail returns mdmt_status. The sentence that says what
 * went wrong (file, value, remedy) is kept per thread and read by the binding
 * layer, which turns it into a Python exception. Nothing here prints or exits. */
#ifndef MDMT_BASE_STATUS_H
#define MDMT_BASE_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    MDMT_OK = 0,
    MDMT_BAD_ARGUMENT, /* a value or shape that the caller must change  -> ValueError      */
    MDMT_NO_MEMORY,    /* an allocation failed or would exceed the host -> MemoryError     */
    MDMT_IO,           /* open, write, fsync, rename                    -> OSError         */
    MDMT_UNSUPPORTED,  /* a backend refuses; another may do it          -> NotImplementedError */
    MDMT_NOT_FINITE,   /* NaN or infinity in input, loss or gradient    -> FloatingPointError  */
    MDMT_INTERNAL,     /* a broken invariant of ours                    -> RuntimeError    */
    MDMT_INTERRUPTED   /* the caller's `stop` asked for it              -> what it raised  */
} mdmt_status;

/* Records the sentence for this thread and returns `code`. */
mdmt_status mdmt_fail(mdmt_status code, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 2, 3)))
#endif
    ;

/* The sentence of this thread's last failure; "" when there was none. Valid
 * until the next mdmt_fail on the same thread. */
const char *mdmt_last_error(void);

#define MDMT_TRY(call)                    \
    do {                                  \
        mdmt_status mdmt_try_ = (call);   \
        if (mdmt_try_ != MDMT_OK) {       \
            return mdmt_try_;             \
        }                                 \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
