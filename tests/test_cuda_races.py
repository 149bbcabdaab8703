"""The search for races among the threads of a kernel, and for what is not the device's memory
(tests/c/fake_cuda/races.cpp), shown to find what was planted and nothing else. With
MDMT_SANITIZE=races tests/test_cuda_ops.py runs under it."""

import itertools

import pytest

from tests import cudahost

# Kernels of 64 threads on 4 blocks: what a thread does in phase 0 and in phase 1.
KERNELS = {
    "each its own": ("shared.v[thread] = 1;", "out[all] = shared.v[thread];", 0),
    "all of a block after a phase": ("shared.v[thread] = 1;", "out[all] = shared.v[0];", 0),
    "neighbours after a phase": (
        "shared.v[thread] = 1;",
        "out[all] = shared.v[(thread + 1) % 64];",
        0,
    ),
    "what nobody writes": ("out[all] = in[0];", "out[all] += in[1];", 0),
    "a block's own memory of the device": (
        "out[all] = 1;",
        "shared.v[thread] = out[block * 64 + (63 - thread)];",
        0,
    ),
    "neighbours in a phase": (
        "shared.v[thread] = 1; out[all] = shared.v[(thread + 1) % 64];",
        "",
        1,
    ),
    "all write the same": ("shared.v[0] = 1;", "", 1),
    "reads before another writes": (
        "out[all] = shared.v[0]; if (thread == 63) shared.v[0] = 1;",
        "",
        1,
    ),
    "packs that overlap": ("mdmt_store_pack(out + all / 4 * 4, mdmt_zero_pack());", "", 1),
    "half a pack each, the same": (
        "((mdmt_bf16 *)(void *)out)[thread / 2].bits = 1;",
        "",
        1,
    ),
    "halves of a number": ("((mdmt_bf16 *)(void *)out)[all].bits = 1;", "", 0),
    "blocks write the same": ("", "out[thread] = 1;", 1),
    "the host's memory": ("shared.v[thread] = host[thread];", "", 1),
    "behind the end": ("shared.v[thread] = in[64 * (thread / 63)];", "", 1),
    "a block reads what another one writes": (
        "out[all] = 1;",
        "shared.v[thread] = out[(all + 64) % 256];",
        1,
    ),
}

PROGRAM = """
#include "csrc/cuda/target.cuh"
#include <cstdio>
const mdmt_cuda_services *mdmt_lent;
mdmt_status mdmt_device_check(const char *) { return MDMT_OK; }
int mdmt_device_overlaps(mdmt_stream_handle) { return 0; }
cudaError_t fake_launch(cudaStream_t, void (*run)(const void *), const void *k, size_t, int)
{
    run(k);
    return cudaSuccess;
}
long fake_walk;
size_t fake_walked(size_t turn, size_t) { return turn; }
/* of the device: out and in */
static struct { alignas(32) float out[1024], gap[8], in[64], host[64]; } all;
size_t fake_block_with(const void *at, const void **from)
{
    *from = at < (const void *)all.in ? all.out : all.in;
    return *from == all.out ? sizeof all.out : sizeof all.in;
}
extern "C" long long fake_cuda_races(const char **text);
template <int WHICH> struct kernel {
    enum { THREADS = 64, PHASES = 2 };
    struct shared_type { float v[64]; };
    float *out;
    const float *in, *host;
    void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        size_t all = block * 64 + (size_t)thread;
        (void)all, (void)shared;
        BODIES
    }
};
int main()
{
    const char *text;
    CALLS
}
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{kernel: races}"""
    bodies = calls = ""
    for i, (zero, one, _) in enumerate(KERNELS.values()):
        bodies += (
            f"if constexpr (WHICH == {i}) {{ if (phase == 0) {{ {zero} }} else {{ {one} }} }}\n"
        )
        calls += f"mdmt_launch(nullptr, 4, kernel<{i}>{{all.out, all.in, all.host}});\n"
        calls += 'printf("%lld\\n", fake_cuda_races(&text));\n'
    folder = tmp_path_factory.mktemp("races")
    source = folder / "kernels.cpp"
    source.write_text(PROGRAM.replace("BODIES", bodies).replace("CALLS", calls))
    said = cudahost.said_by(folder, source, cudahost.RUNTIME / "races.cpp", watched=True)
    total = [0, *map(int, said.split())]
    return dict(zip(KERNELS, (b - a for a, b in itertools.pairwise(total)), strict=True))


@pytest.mark.parametrize("name", KERNELS)
def test_planted_races_are_found_and_no_others(found, name):
    assert (found[name] > 0) == KERNELS[name][2], f"{found[name]} races"
