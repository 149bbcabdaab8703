/* The masked multi-task loss (paper, equations 2 and 3): each sample takes part
 * in the loss of the one task it carries. */
#include "infer.h"

static const mdmt_field loss_fields[] = {
    MDMT_INT_FIELD(mdmt_loss_attrs, tasks, 1),
    MDMT_INT_FIELD(mdmt_loss_attrs, loss, MDMT_MAX_TASKS),
    MDMT_FLOAT_FIELD(mdmt_loss_attrs, weight, MDMT_MAX_TASKS),
    MDMT_INT_FIELD(mdmt_loss_attrs, reduction, 1),
    MDMT_INT_FIELD(mdmt_loss_attrs, want_gradient, 1),
    MDMT_INT_FIELD(mdmt_loss_attrs, weighted, 1),
    MDMT_FLOAT_FIELD(mdmt_loss_attrs, smoothing, MDMT_MAX_TASKS),
    {NULL, MDMT_FIELD_INT, 0, 0}};

static mdmt_status loss_infer(mdmt_graph *graph, mdmt_op *op)
{
    const mdmt_loss_attrs *a = MDMT_ATTRS(mdmt_loss_attrs, op);
    if (a->tasks < 1 || a->tasks > MDMT_MAX_TASKS || op->inputs != 2 + a->tasks) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "masked_loss takes 1 to %d tasks with logits each",
                         MDMT_MAX_TASKS);
    }
    const mdmt_tensor *task = mdmt_in(graph, op, 0), *target = mdmt_in(graph, op, 1);
    int samples = task->dim[0];
    if (task->dtype != MDMT_I32 || task->dims != 1 || target->dims != 2 ||
        target->dim[0] != samples) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "masked_loss: task must be (N) int32, target (N, k)");
    }
    if (a->weighted && target->dim[1] % 2) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "masked_loss: a weighted target has a weight per column, not %d columns",
                         target->dim[1]);
    }
    int columns = a->weighted ? target->dim[1] / 2 : target->dim[1];
    for (int k = 0; k < a->tasks; k++) {
        MDMT_TRY(mdmt_expect(graph, op, 2 + k, MDMT_ROWS));
        const mdmt_tensor *logits = mdmt_in(graph, op, 2 + k);
        int wide = a->loss[k] == MDMT_LOSS_BCE || a->loss[k] == MDMT_LOSS_MSE;
        if (a->loss[k] == MDMT_LOSS_DICE_CE && logits->dim[1] != MDMT_MASK_SUMS) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "masked_loss: task %d has the loss dice_ce, which takes mask_sums", k);
        }
        if (a->smoothing[k] != 0 &&
            (a->loss[k] != MDMT_LOSS_CE || !(a->smoothing[k] > 0 && a->smoothing[k] < 1))) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "masked_loss: task %d cannot have the smoothing %g: it is of the loss "
                             "ce, at least 0 and below 1",
                             k, (double)a->smoothing[k]);
        }
        if (logits->dim[0] != samples || (wide && columns < logits->dim[1])) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "masked_loss: the logits of task %d are (%d, %d), the target (%d, %d)",
                             k, logits->dim[0], logits->dim[1], samples, columns);
        }
    }
    int tasks = a->tasks, want_gradient = a->want_gradient;
    MDMT_TRY(mdmt_output(graph, op, MDMT_SCALAR, MDMT_F32, 1, 1, 1, 1, 1));
    MDMT_TRY(mdmt_output(graph, op, MDMT_SCALAR, MDMT_F32, 1, 2 * tasks, 1, 1, 1));
    for (int k = 0; k < tasks && want_gradient; k++) {
        MDMT_TRY(mdmt_output_like(graph, op, op->in[2 + k]));
    }
    return MDMT_OK;
}

const mdmt_op_record mdmt_op_masked_loss = {.name = "masked_loss",
                                            .min_inputs = 3,
                                            .max_inputs = 2 + MDMT_MAX_TASKS,
                                            .fields = loss_fields,
                                            .attr_bytes = sizeof(mdmt_loss_attrs),
                                            .infer = loss_infer};

static const mdmt_field images_fields[] = {
    MDMT_INT_FIELD(mdmt_images_attrs, batch, 1),     MDMT_INT_FIELD(mdmt_images_attrs, channels, 1),
    MDMT_INT_FIELD(mdmt_images_attrs, size, 2),      MDMT_INT_FIELD(mdmt_images_attrs, augment, 1),
    MDMT_INT_FIELD(mdmt_images_attrs, want_mask, 1), MDMT_INT_FIELD(mdmt_images_attrs, colour, 1),
    MDMT_FLOAT_FIELD(mdmt_images_attrs, mean, 4),    MDMT_FLOAT_FIELD(mdmt_images_attrs, std, 4),
    {NULL, MDMT_FIELD_INT, 0, 0}};

static mdmt_status images_infer(mdmt_graph *graph, mdmt_op *op)
{
    const mdmt_images_attrs *a = MDMT_ATTRS(mdmt_images_attrs, op);
    if (a->channels < 1 || a->channels > 4) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "images have 1 to 4 channels, not %d", a->channels);
    }
    for (int c = 0; c < a->channels; c++) {
        if (!(a->std[c] > 0)) {
            return mdmt_fail(MDMT_BAD_ARGUMENT, "the std of channel %d must be positive", c);
        }
    }
    MDMT_TRY(mdmt_output(graph, op, MDMT_IMAGE, MDMT_F32, 4, a->batch, a->channels, a->size[0],
                         a->size[1]));
    return a->want_mask ? mdmt_output(graph, op, MDMT_IMAGE, MDMT_F32, 4, a->batch, 1, a->size[0],
                                      a->size[1])
                        : MDMT_OK;
}

const mdmt_op_record mdmt_op_images = {.name = "images",
                                       .min_inputs = 0,
                                       .max_inputs = 0,
                                       .fields = images_fields,
                                       .attr_bytes = sizeof(mdmt_images_attrs),
                                       .infer = images_infer};
