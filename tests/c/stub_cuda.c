/* The functions of NVIDIA's driver that cuDNN looks up when it is loaded, for machines without one:
 * there is no device, and what was compiled is loaded as if it were. */
#define THERE_IS_NONE 100

#define NO_DEVICE(name)                                                                            \
    int name(void);                                                                                \
    int name(void)                                                                                 \
    {                                                                                              \
        return THERE_IS_NONE;                                                                      \
    }
#define NOTHING_TO_DO(name)                                                                        \
    int name(void);                                                                                \
    int name(void)                                                                                 \
    {                                                                                              \
        return 0;                                                                                  \
    }

NO_DEVICE(cuInit)
NO_DEVICE(cuDeviceGet)
NO_DEVICE(cuDeviceGetCount)
NO_DEVICE(cuDriverGetVersion)
NO_DEVICE(cuGetProcAddress)
NO_DEVICE(cuGetProcAddress_v2)
NO_DEVICE(cuCtxGetCurrent)
NO_DEVICE(cuCtxGetLimit)
NO_DEVICE(cuCtxPopCurrent)
NO_DEVICE(cuCtxPushCurrent)
NO_DEVICE(cuStreamGetCtx)
NO_DEVICE(cuLaunchKernel)
NO_DEVICE(cuLaunchKernelEx)
NO_DEVICE(cuLaunchCooperativeKernel)
NO_DEVICE(cuTensorMapEncodeIm2col)
NO_DEVICE(cuTensorMapEncodeTiled)
NOTHING_TO_DO(cuModuleGetFunction)
NOTHING_TO_DO(cuModuleLoadData)
NOTHING_TO_DO(cuModuleUnload)
NOTHING_TO_DO(cuLibraryLoadData)
NOTHING_TO_DO(cuLibraryLoadFromFile)
NOTHING_TO_DO(cuLibraryGetKernel)
NOTHING_TO_DO(cuLibraryUnload)
NOTHING_TO_DO(cuKernelSetAttribute)
NOTHING_TO_DO(cuKernelGetAttribute)
NOTHING_TO_DO(cuKernelGetFunction)
NOTHING_TO_DO(cuOccupancyMaxPotentialClusterSize)
NOTHING_TO_DO(cuLinkCreate)
NOTHING_TO_DO(cuLinkAddData)
NOTHING_TO_DO(cuLinkComplete)
NOTHING_TO_DO(cuLinkDestroy)

int cuGetErrorString(int error, const char **text);
int cuGetErrorString(int error, const char **text)
{
    (void)error;
    *text = "there is no device";
    return 0;
}
