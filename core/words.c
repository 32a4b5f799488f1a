/* words.c: the last words of workers: what they had printed and not shown when they died.
   Invariant: a file that a worker sent is believed to be that of the process it names only while
   the private table says that this process is the worker.
   Knows captures and peers. Does not know items or Lua. SPDX-License-Identifier: MIT */
#include "local.h"

void words_drop(struct peer *p) {
  if (!p->kept) return;
  p->kept->real[0] = p->kept->real[1] = -1; /* the owner's own */
  capture_close(p->kept);
  free(p->kept);
  p->kept = NULL;
}

void words_receive(struct local *l) {
  struct capture c;
  unsigned w = 0;
  pid_t pid = 0;
  while (l->team.mail_fd[0] >= 0 && capture_receive(&c, l->team.mail_fd[0], &w, &pid) == 0) {
    struct peer *p = w < l->team.cap && l->peer[w].pid == pid ? &l->peer[w] : NULL;
    if (p) words_drop(p);
    if (p && p->state != P_NONE) p->kept = malloc(sizeof *p->kept);
    if (p && p->kept) {
      c.shown = p->slice->shown;
      *p->kept = c;
    } else {
      c.real[0] = c.real[1] = -1;
      capture_close(&c);
    }
  }
}

void words_take(struct local *l, struct peer *p, struct link_event *e) {
  words_receive(l);
  if (!p->kept) return;
  if (!l->words) l->words = malloc(CAPTURE_TAIL);
  e->output = l->words;
  e->output_len = l->words ? capture_tail(p->kept, l->words, CAPTURE_TAIL) : 0;
  capture_show(p->kept);
  words_drop(p);
}
