/* Sudoku generator: full grids, puzzles with exactly one solution, unsolvable puzzles, and a symmetry invariant.
 *
 * Everything is a pure function of (seed, index): splitting the work over threads never changes the result.
 * Cells are 0 for empty and 1..9; candidate sets are 9-bit masks. No allocation, no globals but constant tables.
 */
#include <stdint.h>
#include <string.h>

#define FULL 0x1FF

static const uint8_t ROW[81] = {
    0,0,0,0,0,0,0,0,0, 1,1,1,1,1,1,1,1,1, 2,2,2,2,2,2,2,2,2, 3,3,3,3,3,3,3,3,3, 4,4,4,4,4,4,4,4,4,
    5,5,5,5,5,5,5,5,5, 6,6,6,6,6,6,6,6,6, 7,7,7,7,7,7,7,7,7, 8,8,8,8,8,8,8,8,8};
static const uint8_t COL[81] = {
    0,1,2,3,4,5,6,7,8, 0,1,2,3,4,5,6,7,8, 0,1,2,3,4,5,6,7,8, 0,1,2,3,4,5,6,7,8, 0,1,2,3,4,5,6,7,8,
    0,1,2,3,4,5,6,7,8, 0,1,2,3,4,5,6,7,8, 0,1,2,3,4,5,6,7,8, 0,1,2,3,4,5,6,7,8};
static const uint8_t BOX[81] = {
    0,0,0,1,1,1,2,2,2, 0,0,0,1,1,1,2,2,2, 0,0,0,1,1,1,2,2,2, 3,3,3,4,4,4,5,5,5, 3,3,3,4,4,4,5,5,5,
    3,3,3,4,4,4,5,5,5, 6,6,6,7,7,7,8,8,8, 6,6,6,7,7,7,8,8,8, 6,6,6,7,7,7,8,8,8};

/* ---- random numbers: splitmix64, one stream per (seed, index) ---- */
typedef struct { uint64_t s; } Rng;
static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
}
static uint64_t next(Rng *r) { return mix(r->s += 0x9E3779B97F4A7C15ULL); }
static uint32_t below(Rng *r, uint32_t n) { return (uint32_t)(((next(r) >> 32) * n) >> 32); }
static Rng stream(uint64_t seed, uint64_t index) {
    Rng r = {mix(seed * 0x9E3779B97F4A7C15ULL + 1) ^ mix(index + 0x632BE59BD9B4E019ULL)};
    return r;
}
static void shuffle(Rng *r, uint8_t *a, int n) {
    for (int i = n - 1; i > 0; i--) { int j = below(r, i + 1); uint8_t t = a[i]; a[i] = a[j]; a[j] = t; }
}

/* ---- solver: naked singles, hidden singles, then a branch on the smallest candidate set ---- */
typedef struct {
    uint16_t used[27];          /* rows 0-8, columns 9-17, boxes 18-26 */
    uint8_t cell[81];
    uint8_t empty[81];
    int n_empty;
    int ban_cell; uint16_t ban; /* one cell that must not take these digits, or -1 */
} State;

static uint16_t candidates(const State *s, int i) {
    uint16_t c = FULL & ~(s->used[ROW[i]] | s->used[9 + COL[i]] | s->used[18 + BOX[i]]);
    return i == s->ban_cell ? c & ~s->ban : c;
}
static void place(State *s, int i, uint16_t bit) {
    s->cell[i] = __builtin_ctz(bit) + 1;
    s->used[ROW[i]] |= bit; s->used[9 + COL[i]] |= bit; s->used[18 + BOX[i]] |= bit;
}
/* 0 when two givens clash */
static int load(State *s, const uint8_t *puzzle) {
    memset(s->used, 0, sizeof s->used);
    s->n_empty = 0; s->ban_cell = -1; s->ban = 0;
    for (int i = 0; i < 81; i++) {
        s->cell[i] = puzzle[i];
        if (!puzzle[i]) { s->empty[s->n_empty++] = i; continue; }
        uint16_t bit = 1 << (puzzle[i] - 1);
        if ((s->used[ROW[i]] | s->used[9 + COL[i]] | s->used[18 + BOX[i]]) & bit) return 0;
        place(s, i, bit);
    }
    return 1;
}
/* Fill what singles decide. 0 on contradiction; otherwise *branch is the cell to branch on, or -1 when solved. */
static int propagate(State *s, int *branch) {
    for (;;) {
        uint16_t once[27], twice[27], cand[81];
        memset(once, 0, sizeof once); memset(twice, 0, sizeof twice);
        int assigned = 0, kept = 0, best = 10;
        *branch = -1;
        for (int k = 0; k < s->n_empty; k++) {
            int i = s->empty[k];
            uint16_t c = candidates(s, i);
            if (!c) return 0;
            if (!(c & (c - 1))) { place(s, i, c); assigned = 1; continue; }
            s->empty[kept++] = i;
            if (assigned) continue;
            int u[3] = {ROW[i], 9 + COL[i], 18 + BOX[i]};
            for (int j = 0; j < 3; j++) { twice[u[j]] |= once[u[j]] & c; once[u[j]] |= c; }
            cand[i] = c;
            int n = __builtin_popcount(c);
            if (n < best) { best = n; *branch = i; }
        }
        s->n_empty = kept;
        if (!kept) { *branch = -1; return 1; }
        if (assigned) continue;
        for (int u = 0; u < 27; u++) if ((once[u] | s->used[u]) != FULL) return 0;
        for (int k = 0; k < kept; k++) {
            int i = s->empty[k];
            uint16_t h = cand[i] & ((once[ROW[i]] & ~twice[ROW[i]]) | (once[9 + COL[i]] & ~twice[9 + COL[i]]) |
                                    (once[18 + BOX[i]] & ~twice[18 + BOX[i]]));
            if (!h) continue;
            if (h & (h - 1)) return 0;               /* two digits need this one cell */
            if (!(candidates(s, i) & h)) return 0;   /* taken by a hidden single placed a moment ago */
            place(s, i, h);
            s->empty[k--] = s->empty[--kept];
            s->n_empty = kept;
            assigned = 1;
        }
        if (!kept) { *branch = -1; return 1; }
        if (!assigned) return 1;
    }
}
static int solve(State *s, int limit, Rng *rng, uint8_t *solution) {
    int i;
    if (!propagate(s, &i)) return 0;
    if (i < 0) { if (solution) memcpy(solution, s->cell, 81); return 1; }
    uint16_t c = candidates(s, i);
    uint8_t order[9]; int n = 0, found = 0;
    for (int d = 0; d < 9; d++) if (c >> d & 1) order[n++] = d;
    if (rng) shuffle(rng, order, n);
    for (int k = 0; k < s->n_empty; k++) if (s->empty[k] == i) { s->empty[k] = s->empty[--s->n_empty]; break; }
    for (int k = 0; k < n && found < limit; k++) {
        State t = *s;
        place(&t, i, 1 << order[k]);
        found += solve(&t, limit - found, rng, solution);
    }
    return found;
}
/* Number of solutions, counted up to `limit`; the last one found goes to `solution` unless it is NULL. */
int count_solutions(const uint8_t *puzzle, int limit, uint8_t *solution) {
    State s;
    return load(&s, puzzle) ? solve(&s, limit, 0, solution) : 0;
}
/* Whether singles alone show that the puzzle has no solution. */
static int singles_refute(const uint8_t *puzzle) {
    State s; int i;
    return !load(&s, puzzle) || !propagate(&s, &i);
}

static void full_grid(Rng *r, uint8_t *grid) {
    State s; uint8_t start[81] = {0}, digits[9];
    for (int d = 0; d < 9; d++) digits[d] = d + 1;
    shuffle(r, digits, 9);
    memcpy(start, digits, 9);
    uint8_t rest[9]; int n = 0;              /* a random legal second row start makes the grids spread wider */
    for (int d = 3; d < 9; d++) rest[n++] = digits[d];
    shuffle(r, rest, n);
    memcpy(start + 9, rest, 3);
    load(&s, start);
    solve(&s, 1, r, grid);
}

/* ---- what no symmetry changes: the cycle types of the digit maps between two rows (columns) of one band (stack) ---- */
static uint64_t cycle_type(const uint8_t *grid, int a, int b, int step, int line) {
    uint8_t to[10]; uint16_t seen = 0; uint64_t h = 0;
    for (int k = 0; k < 9; k++) to[grid[a * line + k * step]] = grid[b * line + k * step];
    for (int d = 1; d <= 9; d++) {
        if (seen >> d & 1) continue;
        int n = 0, e = d;
        do { seen |= 1 << e; e = to[e]; n++; } while (e != d);
        h += mix(n);                          /* a sum: the order of the cycles does not matter */
    }
    return mix(h);
}
static uint64_t side(const uint8_t *grid, int step, int line) {
    uint64_t h = 0;
    for (int band = 0; band < 3; band++) {
        uint64_t in_band = 0;
        for (int a = 0; a < 3; a++)
            for (int b = a + 1; b < 3; b++) in_band += cycle_type(grid, band * 3 + a, band * 3 + b, step, line);
        h += mix(in_band);
    }
    return mix(h);
}
/* Equal for every two grids that a relabelling, row, column, band or stack permutation or transposition connects. */
uint64_t invariant(const uint8_t *grid) { return mix(side(grid, 1, 9) + side(grid, 9, 1)); }

/* ---- puzzles ---- */
static int removable(State *s, const uint8_t *puzzle, int i) {
    uint16_t bit = 1 << (puzzle[i] - 1);
    int units[3] = {ROW[i], 9 + COL[i], 18 + BOX[i]};
    for (int j = 0; j < 3; j++) s->used[units[j]] &= ~bit;
    s->cell[i] = 0;
    uint16_t c = candidates(s, i) & ~bit;
    if (!c) return 1;                         /* no other digit fits here */
    for (int j = 0; j < 3; j++) {             /* the digit has no other place in one of the units */
        int other = 0;
        for (int k = 0; k < 81 && !other; k++) {
            if (s->cell[k] || k == i) continue;
            if (units[j] != ROW[k] && units[j] != 9 + COL[k] && units[j] != 18 + BOX[k]) continue;
            other = candidates(s, k) & bit;
        }
        if (!other) return 1;
    }
    State t = *s;
    t.n_empty = 0;
    for (int k = 0; k < 81; k++) if (!t.cell[k]) t.empty[t.n_empty++] = k;
    t.ban_cell = i; t.ban = bit;
    if (!solve(&t, 1, 0, 0)) return 1;
    place(s, i, bit);
    return 0;
}
/* One grid dug once; a copy is kept each time the number of givens meets the next of the falling targets. */
static int dig(Rng *r, const uint8_t *grid, const uint8_t *targets, int n, uint8_t *out) {
    State s; uint8_t puzzle[81], order[81];
    int givens = 81, done = 0;
    memcpy(puzzle, grid, 81);
    load(&s, puzzle);
    for (int i = 0; i < 81; i++) order[i] = i;
    shuffle(r, order, 81);
    for (int k = 0; k < 81 && done < n; k++) {
        if (!removable(&s, puzzle, order[k])) continue;
        puzzle[order[k]] = 0;
        givens--;
        while (done < n && targets[done] == givens) memcpy(out + 81 * done++, puzzle, 81);
    }
    return done == n;
}
static int banned(uint64_t h, const uint64_t *sorted, int64_t n) {
    int64_t lo = 0, hi = n;
    while (lo < hi) { int64_t m = (lo + hi) / 2; if (sorted[m] < h) lo = m + 1; else hi = m; }
    return lo < n && sorted[lo] == h;
}
/* Groups first..first+count-1 of `per_grid` puzzles each: one solution grid a group, its targets (number of givens)
 * in falling order. Grids whose invariant is in `ban` (sorted) are never used. Writes puzzles and solutions [_, 81]. */
void generate(uint64_t seed, int64_t first, int64_t count, int per_grid, const uint8_t *targets, const uint64_t *ban,
              int64_t n_ban, uint8_t *puzzles, uint8_t *solutions) {
    for (int64_t g = 0; g < count; g++) {
        Rng r = stream(seed, first + g);
        uint8_t grid[81];
        for (;;) {
            full_grid(&r, grid);
            if (banned(invariant(grid), ban, n_ban)) continue;
            int ok = 0;
            for (int attempt = 0; attempt < 12 && !ok; attempt++)
                ok = dig(&r, grid, targets + g * per_grid, per_grid, puzzles + g * per_grid * 81);
            if (ok) break;
        }
        for (int k = 0; k < per_grid; k++) memcpy(solutions + (g * per_grid + k) * 81, grid, 81);
    }
}
/* Turn each puzzle into one without a solution by changing one given: odd indices get a plain clash with a peer,
 * even ones a digit that clashes with no given but that singles refute (a clash where none is found). */
void spoil(uint64_t seed, int64_t count, uint8_t *puzzles) {
    for (int64_t p = 0; p < count; p++) {
        Rng r = stream(seed, p);
        uint8_t *q = puzzles + 81 * p;
        for (int attempt = 0;; attempt++) {
            int subtle = !(p & 1) && attempt < 60, i = below(&r, 81);
            if (!q[i]) continue;
            uint8_t old = q[i], now = 1 + below(&r, 9);
            if (now == old) continue;
            State s;
            q[i] = now;
            int clash = !load(&s, q);
            if (subtle ? !clash && singles_refute(q) : clash) break;
            q[i] = old;
        }
    }
}
