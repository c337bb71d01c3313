/* The time of day of a process, ahead by what a file says (`faults.py`); preloaded.

   Only the clock that people set is moved. CLOCK_MONOTONIC stays as it is, as it does on a machine
   whose clock is set, and so do waits by it, as Python's are. The times of files stay too, and a wait
   until a time of day lasts as much longer. The file, named by FEDSIGHT_CLOCK, is mapped and holds one
   int64_t: seconds. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int (*true_clock)(clockid_t, struct timespec *);
static const volatile int64_t *ahead;

__attribute__((constructor)) static void begin(void)
{
    true_clock = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("FEDSIGHT_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        _exit(71); /* a clock that does not jump would show that nothing happens */
    void *found = mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (found == MAP_FAILED)
        _exit(71);
    ahead = found;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    if (!true_clock) /* another library asks before this one has begun */
        begin();
    int code = true_clock(clock, now);
    if (code == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *ahead;
    return code;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec exact;
    int code = clock_gettime(CLOCK_REALTIME, &exact);
    (void)zone;
    if (code == 0) {
        now->tv_sec = exact.tv_sec;
        now->tv_usec = exact.tv_nsec / 1000;
    }
    return code;
}

time_t time(time_t *result)
{
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now))
        return -1;
    if (result)
        *result = now.tv_sec;
    return now.tv_sec;
}
