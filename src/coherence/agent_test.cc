#include "coherence/agent.h"

#include <gtest/gtest.h>
