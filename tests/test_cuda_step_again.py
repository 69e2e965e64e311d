# SPDX-License-Identifier: MIT
"""The CPU's tests of scalers, of waiting and of odd tensors again, on an emulated GPU."""

import pytest
from emulated_gpu import gpu  # noqa: F401
from test_sgd_odd import *  # noqa: F403
from test_sgd_refused import *  # noqa: F403
from test_sgd_scaler import *  # noqa: F403
from test_sgd_waiting import *  # noqa: F403

# A double parameter leaves all to stock torch there, which steps what overlaps.
del test_overlap_is_refused_by_name_and_before_other_gradients_are_unscaled  # noqa: F821

pytestmark = pytest.mark.usefixtures("gpu")
