#define _GNU_SOURCE
#include "team.h"

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

/* About 30 to 60 microseconds of polling: longer than a step between two operators is unbalanced, far shorter than a
 * scheduler's time slice. Then the thread sleeps until it is woken. */
#define SPIN_LIMIT 2000

typedef struct {
    _Atomic uint32_t value;      /* the word that waiters watch; only ever incremented */
    _Atomic uint32_t sleepers;   /* how many are in the kernel, so that waking costs a system call only then */
    char pad[56];                /* two words that different threads hammer must not share a cache line */
} event_t;

struct nv_team {
    event_t start, barrier, finish;
    _Atomic int arrived;
    char pad[60];
    _Atomic int unfinished;
    _Atomic int stop;
    int num_threads;
    int spin_limit;
    nv_team_fn fn;
    void *arg;
    pthread_t *threads;
};

typedef struct { nv_team *team; int tid; } member_t;

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void event_wait(event_t *event, uint32_t seen, int spin_limit) {
    for (int i = 0; i < spin_limit; i++) {
        if (atomic_load_explicit(&event->value, memory_order_acquire) != seen) return;
        relax();
    }
    /* seq_cst on both sides: either the waker sees the sleeper, or the sleeper sees the new value. */
    atomic_fetch_add(&event->sleepers, 1);
    while (atomic_load(&event->value) == seen) {
#ifdef __linux__
        syscall(SYS_futex, &event->value, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
#else
        sched_yield();
#endif
    }
    atomic_fetch_sub(&event->sleepers, 1);
}

static void event_signal(event_t *event) {
    atomic_fetch_add(&event->value, 1);
#ifdef __linux__
    if (atomic_load(&event->sleepers) != 0)
        syscall(SYS_futex, &event->value, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
#endif
}

static void *worker(void *arg) {
    member_t member = *(member_t *)arg;
    nv_team *team = member.team;
    uint32_t seen = 0;
    free(arg);
    for (;;) {
        event_wait(&team->start, seen, team->spin_limit);
        seen++;
        if (atomic_load(&team->stop)) return NULL;
        team->fn(team->arg, member.tid, team->num_threads);
        if (atomic_fetch_sub(&team->unfinished, 1) == 1) event_signal(&team->finish);
    }
}

static void stop_workers(nv_team *team, int started) {
    atomic_store(&team->stop, 1);
    event_signal(&team->start);
    for (int i = 0; i < started; i++) pthread_join(team->threads[i], NULL);
}

nv_team *nv_team_create(int num_threads) {
    nv_team *team = calloc(1, sizeof *team);
    if (!team) return NULL;
    team->num_threads = num_threads;
    /* With fewer cores than members, spinning only delays the thread that everybody waits for. */
    team->spin_limit = sysconf(_SC_NPROCESSORS_ONLN) >= num_threads ? SPIN_LIMIT : 0;
    team->threads = calloc((size_t)num_threads, sizeof *team->threads);
    if (!team->threads) { free(team); return NULL; }
    for (int i = 1; i < num_threads; i++) {
        member_t *member = malloc(sizeof *member);
        if (member) *member = (member_t){team, i};
        if (!member || pthread_create(&team->threads[i - 1], NULL, worker, member) != 0) {
            free(member);
            stop_workers(team, i - 1);
            free(team->threads);
            free(team);
            return NULL;
        }
    }
    return team;
}

void nv_team_destroy(nv_team *team) {
    if (!team) return;
    stop_workers(team, team->num_threads - 1);
    free(team->threads);
    free(team);
}

int nv_team_size(const nv_team *team) { return team->num_threads; }

void nv_team_run(nv_team *team, nv_team_fn fn, void *arg) {
    if (team->num_threads == 1) { fn(arg, 0, 1); return; }
    uint32_t seen = atomic_load(&team->finish.value);
    team->fn = fn;
    team->arg = arg;
    atomic_store(&team->unfinished, team->num_threads - 1);
    event_signal(&team->start);
    fn(arg, 0, team->num_threads);
    event_wait(&team->finish, seen, team->spin_limit);
}

void nv_team_barrier(nv_team *team) {
    if (team->num_threads == 1) return;
    uint32_t seen = atomic_load_explicit(&team->barrier.value, memory_order_acquire);
    if (atomic_fetch_add(&team->arrived, 1) == team->num_threads - 1) {
        atomic_store(&team->arrived, 0);
        event_signal(&team->barrier);
    } else {
        event_wait(&team->barrier, seen, team->spin_limit);
    }
}
