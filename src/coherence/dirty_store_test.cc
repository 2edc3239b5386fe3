#include "coherence/dirty_store.h"

#include <gtest/gtest.h>
