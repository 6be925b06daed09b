/* One team of threads for the whole engine.
 *
 * A step of the decoder is one team_run: every member executes the same function and meets the others at team_barrier
 * between two operators. Waiting members spin briefly and then sleep in the kernel, so that a busy neighbour on the
 * machine gets the core instead of a spin loop (libgomp's waits cannot be bounded after the process has started, which
 * is why this is not an OpenMP team).
 */
#ifndef NV_TEAM_H
#define NV_TEAM_H

#include <stddef.h>

typedef struct nv_team nv_team;
typedef void (*nv_team_fn)(void *arg, int tid, int num_threads);

/* Starts num_threads - 1 workers; the caller of nv_team_run is member 0. NULL when memory or threads are exhausted. */
nv_team *nv_team_create(int num_threads);
void nv_team_destroy(nv_team *team);
int nv_team_size(const nv_team *team);
/* Runs fn(arg, tid, n) on every member and returns when all are done. One caller at a time. */
void nv_team_run(nv_team *team, nv_team_fn fn, void *arg);
/* Every member must call it the same number of times inside one nv_team_run. */
void nv_team_barrier(nv_team *team);

/* The counter's value before 1 was added: how members share tasks out among themselves. */
static inline ptrdiff_t nv_fetch_add(ptrdiff_t *counter) { return __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED); }

#endif
