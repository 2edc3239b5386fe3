#include "coherence/kernel_cache.h"

#include <gtest/gtest.h>
