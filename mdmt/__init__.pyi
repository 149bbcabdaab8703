"""What `mdmt` has, for editors and type checkers: the names themselves are loaded when used."""

from . import analysis as analysis
from . import augmentation as augmentation
from . import config as config
from . import data as data
from . import engine as engine
from . import errors as errors
from . import experiments as experiments
from . import metrics as metrics
from . import nets as nets
from . import ops as ops
from . import plots as plots
from . import report as report
from . import run as run
from . import schedule as schedule
from . import splits as splits
from . import stats as stats
from . import tables as tables
from . import weights as weights
from .augmentation import augment as augment
from .loss import masked_loss as masked_loss
from .model import Model as Model
from .nets import backbones as backbones
from .preprocess.lungs import lung_mask as lung_mask
from .preprocess.lungs import lung_masks as lung_masks
from .sampler import MixedBatchSampler as MixedBatchSampler
from .system import set_num_threads as set_num_threads
from .system import show_config as show_config
from .weighting import class_weights as class_weights
from .weights import average_weights as average_weights
from .weights import load_weights as load_weights

__version__: str
