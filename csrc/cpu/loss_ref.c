/* Kernel of the op masked_loss; the arithmetic is in loss.c. A step has few
 * samples and few logits (16 x 6, say), so that one thread does it at once. */
#include "kernels.h"
#include "loss.h"

static void describe(const mdmt_site *site, mdmt_loss_problem *p)
{
    p->attrs = MDMT_ATTRS(mdmt_loss_attrs, site->op);
    p->samples = site->in[0]->dim[0];
    p->target_width = site->in[1]->dims > 1 ? site->in[1]->dim[1] : 1;
    for (int k = 0; k < p->attrs->tasks; k++) {
        p->width[k] = site->in[2 + k]->dim[1];
    }
}

static void needs(const mdmt_site *site, mdmt_needs *needs)
{
    mdmt_loss_problem p;
    describe(site, &p);
    needs->workspace_bytes = sizeof(double) * (size_t)mdmt_loss_scratch(&p);
}

static mdmt_status run(const mdmt_site *site, const mdmt_call *call)
{
    mdmt_loss_problem p;
    double loss, per_task[2 * MDMT_MAX_TASKS];
    describe(site, &p);
    p.task = call->in[0].data;
    p.target = call->in[1].data;
    for (int k = 0; k < p.attrs->tasks; k++) {
        p.logits[k] = call->in[2 + k].data;
        p.dlogits[k] = p.attrs->want_gradient ? call->out[2 + k] : NULL;
    }
    MDMT_TRY(mdmt_masked_loss(&p, call->workspace, &loss, per_task));
    float *loss_out = call->out[0], *per_task_out = call->out[1];
    loss_out[0] = (float)loss;
    for (int k = 0; k < 2 * p.attrs->tasks; k++) {
        per_task_out[k] = (float)per_task[k];
    }
    return MDMT_OK;
}

const mdmt_cpu_impl mdmt_f32_masked_loss__ref = {.name = "mdmt_f32_masked_loss__ref",
                                                 .isa = MDMT_ISA_REF,
                                                 .needs = needs,
                                                 .cost = mdmt_ref_cost,
                                                 .run = run};
