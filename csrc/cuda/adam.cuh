/* Updates of the weights within a series (series.cu), and outside one (adam.cu). */
#ifndef MDMT_CUDA_ADAM_CUH
#define MDMT_CUDA_ADAM_CUH

#include "backend.cuh"

/* Of an update, the step-th. */
MDMT_HD mdmt_gpu_adam mdmt_gpu_adam_numbers(const mdmt_adam &a, int64_t step)
{
    double correction1 = 1 - pow(a.beta1, (double)step);
    double correction2 = 1 - pow(a.beta2, (double)step);
    mdmt_gpu_adam n;
    n.decay_factor = a.decoupled ? (float)(1 - a.lr * a.weight_decay) : 1.0f;
    n.l2 = a.decoupled ? 0.0f : (float)a.weight_decay;
    n.one_minus_beta1 = (float)(1 - a.beta1);
    n.beta2 = (float)a.beta2;
    n.one_minus_beta2 = (float)(1 - a.beta2);
    n.root_correction = (float)sqrt(correction2);
    n.eps = (float)a.eps;
    n.step_size = (float)(a.lr / correction1);
    return n;
}

mdmt_status mdmt_gpu_check_adam(const mdmt_adam *adam);

/* Room for the norm of the gradient, before anything that clips is recorded. */
mdmt_status mdmt_gpu_clip_room(mdmt_gpu *gpu);

/* Of a series: the update with the numbers in the GPU's memory. */
mdmt_status mdmt_gpu_update(mdmt_gpu *gpu, const mdmt_update *u, int clips);

/* Of a series: adds the gradients of the current part to the sums; `last` of its step: puts their
 * scaled sums in their place. */
mdmt_status mdmt_gpu_add_part(mdmt_gpu *gpu, const mdmt_update *u, float *sums, int last);

#endif
