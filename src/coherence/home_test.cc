#include "coherence/home.h"

#include <gtest/gtest.h>
