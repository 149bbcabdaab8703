#define _GNU_SOURCE
#include "checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../base/memory.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the arrays of a checkpoint are little-endian: a byte swap is needed here"
#endif

static atomic_int_fast64_t fail_after = -1;

void mdmt_fail_io_after(int64_t n)
{
    atomic_store(&fail_after, n);
}

/* True when the test hook wants this system call to fail; errno is then set. */
static int hook_refuses(void)
{
    if (atomic_load(&fail_after) < 0 || atomic_fetch_sub(&fail_after, 1) != 0) {
        return 0;
    }
    errno = ENOSPC;
    return 1;
}

/* ---- header ---- */

/* Text that grows; `failed` once memory ran out. */
typedef struct {
    char *data;
    size_t bytes, room;
    int failed;
} text_buffer;

static void append(text_buffer *to, const char *data, size_t bytes)
{
    if (!to->failed && to->bytes + bytes > to->room) {
        size_t room = 2 * (to->bytes + bytes) + 256;
        char *grown = mdmt_regrow(to->data, to->room, room, 1);
        to->failed = !grown;
        to->data = grown ? grown : to->data;
        to->room = grown ? room : to->room;
    }
    if (!to->failed) {
        memcpy(to->data + to->bytes, data, bytes);
        to->bytes += bytes;
    }
}

static void append_plain(text_buffer *to, const char *text)
{
    append(to, text, strlen(text));
}

static void append_number(text_buffer *to, uint64_t value)
{
    char digits[24];
    snprintf(digits, sizeof digits, "%" PRIu64, value);
    append_plain(to, digits);
}

/* A JSON string (RFC 8259): quote, backslash and control characters escaped. */
static void append_string(text_buffer *to, mdmt_text text)
{
    append_plain(to, "\"");
    for (size_t i = 0; i < text.bytes; i++) {
        unsigned char c = (unsigned char)text.data[i];
        char escaped[8];
        if (c < 0x20) {
            snprintf(escaped, sizeof escaped, "\\u%04x", c);
            append_plain(to, escaped);
        } else {
            if (c == '"' || c == '\\') {
                append_plain(to, "\\");
            }
            append(to, text.data + i, 1);
        }
    }
    append_plain(to, "\"");
}

static size_t array_bytes(const mdmt_array *array)
{
    size_t bytes = (size_t)array->item_bytes;
    for (int d = 0; d < array->dims; d++) {
        bytes *= (size_t)array->dim[d];
    }
    return bytes;
}

static void append_array(text_buffer *to, const mdmt_array *array, uint64_t offset)
{
    append_string(to, array->name);
    append_plain(to, ":{\"dtype\":\"");
    append_plain(to, array->dtype);
    append_plain(to, "\",\"shape\":[");
    for (int d = 0; d < array->dims; d++) {
        append_plain(to, d ? "," : "");
        append_number(to, (uint64_t)array->dim[d]);
    }
    append_plain(to, "],\"data_offsets\":[");
    append_number(to, offset);
    append_plain(to, ",");
    append_number(to, offset + array_bytes(array));
    append_plain(to, "]}");
}

/* The header with its length before it. */
static void make_header(text_buffer *to, const mdmt_array *const *sorted, int count,
                        const mdmt_text *metadata, int pairs)
{
    uint64_t length = 0, offset = 0;
    append(to, (const char *)&length, sizeof length);
    append_plain(to, "{");
    for (int i = 0; i < pairs; i++) {
        append_plain(to, i ? "," : "\"__metadata__\":{");
        append_string(to, metadata[2 * i]);
        append_plain(to, ":");
        append_string(to, metadata[2 * i + 1]);
    }
    append_plain(to, pairs ? "}" : "");
    for (int i = 0; i < count; i++) {
        append_plain(to, i || pairs ? "," : "");
        append_array(to, sorted[i], offset);
        offset += array_bytes(sorted[i]);
    }
    append_plain(to, "}");
    while (to->bytes % 8 && !to->failed) {
        append_plain(to, " ");
    }
    if (!to->failed) {
        length = to->bytes - sizeof length;
        memcpy(to->data, &length, sizeof length);
    }
}

/* Wide elements first, then by name: a file depends on its content alone. */
static int compare_arrays(const void *a, const void *b)
{
    const mdmt_array *one = *(const mdmt_array *const *)a, *two = *(const mdmt_array *const *)b;
    if (one->item_bytes != two->item_bytes) {
        return two->item_bytes - one->item_bytes;
    }
    size_t common = one->name.bytes < two->name.bytes ? one->name.bytes : two->name.bytes;
    int order = memcmp(one->name.data, two->name.data, common);
    return order ? order
                 : (one->name.bytes > two->name.bytes) - (one->name.bytes < two->name.bytes);
}

static mdmt_status check_names(const mdmt_array *const *sorted, int count)
{
    static const char reserved[] = "__metadata__";
    for (int i = 0; i < count; i++) {
        mdmt_text name = sorted[i]->name;
        if (name.bytes == sizeof reserved - 1 && !memcmp(name.data, reserved, name.bytes)) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "an array cannot have the name %s, which safetensors reserves",
                             reserved);
        }
    }
    return MDMT_OK;
}

/* ---- file ---- */

static mdmt_status io_failure(const char *what, const char *path)
{
    int code = errno;
    char reason[128];
#if defined(__GLIBC__) /* returns the text; that of POSIX a code */
    const char *text = strerror_r(code, reason, sizeof reason);
#else
    const char *text = strerror_r(code, reason, sizeof reason) == 0 ? reason : "unknown reason";
#endif
    return mdmt_fail(MDMT_IO, "%s %s failed: %s", what, path, text);
}

/* 0 when all of the file is on the disk. macOS' fsync leaves it in the disk's
 * own cache, out of order; its F_FULLFSYNC, which not every file system has,
 * empties that, too. */
static int flush_to_disk(int file)
{
#if defined(F_FULLFSYNC)
    if (fcntl(file, F_FULLFSYNC) == 0) {
        return 0;
    }
#endif
    return fsync(file);
}

static mdmt_status write_all(int file, const char *data, size_t bytes, const char *path)
{
    const size_t most = (size_t)1 << 30; /* of one call; Linux takes no more than 2 GiB */
    while (bytes) {
        ssize_t done = hook_refuses() ? -1 : write(file, data, bytes < most ? bytes : most);
        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            errno = done == 0 ? ENOSPC : errno;
            return io_failure("writing", path);
        }
        data += done;
        bytes -= (size_t)done;
    }
    return MDMT_OK;
}

/* Bytes of the path that name the folder, the slash included. */
static size_t folder_bytes(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) + 1 : 0;
}

/* Whether `name` is that of a temporary file for a file called `of`. */
static int is_temporary(const char *name, const char *of)
{
    size_t bytes = strlen(of);
    if (name[0] != '.' || strncmp(name + 1, of, bytes) != 0 || name[bytes + 1] != '.') {
        return 0;
    }
    const char *rest = name + bytes + 2;
    size_t numbers = strspn(rest, "0123456789-");
    return numbers > 0 && strcmp(rest + numbers, ".tmp") == 0;
}

/* Removes what killed processes left of earlier writes to `path`: the temporary
 * files that nobody holds a lock on. What cannot be removed stays. `room` holds a
 * path of a temporary file. */
static void remove_left(const char *path, char *room, size_t bytes)
{
    size_t length = folder_bytes(path);
    memcpy(room, length ? path : "./", length ? length : 2);
    room[length ? length : 2] = '\0';
    DIR *folder = opendir(room);
    const struct dirent *entry;
    while (folder && (entry = readdir(folder))) {
        if (!is_temporary(entry->d_name, path + length)) {
            continue;
        }
        snprintf(room, bytes, "%.*s%s", (int)length, path, entry->d_name);
        int file = open(room, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        if (file >= 0 && flock(file, LOCK_EX | LOCK_NB) == 0) {
            unlink(room);
        }
        if (file >= 0) {
            close(file);
        }
    }
    if (folder) {
        closedir(folder);
    }
}

/* Makes a temporary file that no other writer has, and locks it, which tells
 * `remove_left` that it is in use; its path goes to `temporary`. One that was
 * removed between making and locking it is made again. */
static mdmt_status open_temporary(const char *path, char *temporary, size_t bytes, int *file)
{
    static atomic_uint counter;
    size_t length = folder_bytes(path);
    for (;;) {
        unsigned number = atomic_fetch_add(&counter, 1);
        snprintf(temporary, bytes, "%.*s.%s.%ld-%u.tmp", (int)length, path, path + length,
                 (long)getpid(), number);
        *file =
            hook_refuses() ? -1 : open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (*file < 0 && errno == EEXIST) {
            continue;
        }
        if (*file < 0) {
            return io_failure("opening a temporary file for", path);
        }
        flock(*file, LOCK_EX); /* where there are no locks, nothing is removed either */
        struct stat ours, named;
        if (fstat(*file, &ours) == 0 && stat(temporary, &named) == 0 &&
            ours.st_ino == named.st_ino && ours.st_dev == named.st_dev) {
            return MDMT_OK;
        }
        close(*file);
    }
}

static mdmt_status write_content(int file, const char *path, const text_buffer *header,
                                 const mdmt_array *const *sorted, int count)
{
    MDMT_TRY(write_all(file, header->data, header->bytes, path));
    for (int i = 0; i < count; i++) {
        MDMT_TRY(write_all(file, sorted[i]->data, array_bytes(sorted[i]), path));
    }
    if (hook_refuses() || flush_to_disk(file) != 0) {
        return io_failure("flushing to disk", path);
    }
    return MDMT_OK;
}

/* So that the rename itself survives a power failure. */
static mdmt_status flush_folder(const char *path, char *room)
{
    const char *slash = strrchr(path, '/');
    size_t length = slash && slash != path ? (size_t)(slash - path) : 1;
    memcpy(room, slash ? path : ".", length);
    room[length] = '\0';
    int folder = hook_refuses() ? -1 : open(room, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) {
        return io_failure("opening the folder", room);
    }
    /* EINVAL: a file system that knows no flushing of folders */
    mdmt_status status = MDMT_OK;
    if (hook_refuses() || (flush_to_disk(folder) != 0 && errno != EINVAL)) {
        status = io_failure("flushing to disk the folder", room);
    }
    close(folder);
    return status;
}

static mdmt_status replace_file(const char *path, const text_buffer *header,
                                const mdmt_array *const *sorted, int count)
{
    size_t room = strlen(path) + 320; /* also for another file of the folder */
    char *temporary = mdmt_acquire(room, 1);
    if (!temporary) {
        return MDMT_NO_MEMORY;
    }
    remove_left(path, temporary, room);
    int file = -1;
    mdmt_status status = open_temporary(path, temporary, room, &file);
    if (status == MDMT_OK) {
        status = write_content(file, path, header, sorted, count);
        if (status == MDMT_OK && (hook_refuses() || rename(temporary, path) != 0)) {
            status = io_failure("renaming the temporary file to", path);
        }
        if (status != MDMT_OK) {
            unlink(temporary);
        }
        close(file); /* after the rename: it holds the lock; its content is on disk */
    }
    if (status == MDMT_OK) {
        status = flush_folder(path, temporary);
    }
    mdmt_release(temporary);
    return status;
}

mdmt_status mdmt_write_safetensors(const char *path, const mdmt_array *arrays, int count,
                                   const mdmt_text *metadata, int pairs)
{
    text_buffer header = {NULL, 0, 0, 0};
    mdmt_status status = MDMT_NO_MEMORY;
    const mdmt_array **sorted = mdmt_acquire((size_t)count, sizeof *sorted);
    if (!sorted) {
        goto done;
    }
    for (int i = 0; i < count; i++) {
        sorted[i] = &arrays[i];
    }
    qsort(sorted, (size_t)count, sizeof *sorted, compare_arrays);
    status = check_names(sorted, count);
    if (status != MDMT_OK) {
        goto done;
    }
    make_header(&header, sorted, count, metadata, pairs);
    status = header.failed ? MDMT_NO_MEMORY : replace_file(path, &header, sorted, count);
done:
    mdmt_release(header.data);
    mdmt_release(sorted);
    return status;
}
