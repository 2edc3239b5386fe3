# Build rules every layer shares.
include(GNUInstallDirs)

set(CMAKE_CXX_STANDARD 23)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_C_STANDARD 11)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "" FORCE)
endif()

find_program(VREMOTE_CCACHE ccache)
if(VREMOTE_CCACHE)
  set(CMAKE_C_COMPILER_LAUNCHER ${VREMOTE_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${VREMOTE_CCACHE})
endif()

# Designated initializers leave members to their defaults on purpose.
add_compile_options(-Wall -Wextra -Wshadow -Wno-missing-field-initializers -Werror -fno-omit-frame-pointer)
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-Wnon-virtual-dtor> $<$<COMPILE_LANGUAGE:CXX>:-Woverloaded-virtual>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # GCC 12 warns falsely of std::variant and std::optional, at -O2 and under sanitizers.
  add_compile_options(-Wno-maybe-uninitialized)
  if(CMAKE_BUILD_TYPE STREQUAL "Release")
    # And of "text" + std::to_string(n) where all of it is inlined (GCC bug 105651).
    add_compile_options(-Wno-restrict)
  endif()
endif()
if(VREMOTE_SANITIZE)
  add_compile_options(-fsanitize=${VREMOTE_SANITIZE} -fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS)
  if(VREMOTE_SANITIZE MATCHES undefined)
    # Without three checks that add half to the compile time, for what a crash tells as well.
    add_compile_options(-fno-sanitize=null,object-size,vptr)
  endif()
  add_link_options(-fsanitize=${VREMOTE_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC 12 says of every atomic_thread_fence that TSan does not see it.
    add_compile_options(-Wno-tsan)
  endif()
endif()
if(VREMOTE_FUZZ)
  # Coverage for libFuzzer everywhere, its main() only in the fuzzers. clang 14 cannot read libstdc++ 12's <expected>.
  add_compile_options(-fsanitize=fuzzer-no-link -isystem ${CMAKE_SOURCE_DIR}/scripts/lib/tidy -Wno-unknown-warning-option)
endif()

# vremote_layer(NAME SOURCES ... DEPS ...): the static library vremote_NAME of one folder of src.
function(vremote_layer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
  if(ARG_SOURCES)
    add_library(vremote_${name} STATIC ${ARG_SOURCES})
    target_include_directories(vremote_${name} PUBLIC ${CMAKE_SOURCE_DIR}/src ${CMAKE_SOURCE_DIR}/include)
    target_link_libraries(vremote_${name} PUBLIC ${ARG_DEPS} PRIVATE ${ARG_PRIVATE_DEPS})
  else()
    add_library(vremote_${name} INTERFACE)
    target_include_directories(vremote_${name} INTERFACE ${CMAKE_SOURCE_DIR}/src ${CMAKE_SOURCE_DIR}/include)
    target_link_libraries(vremote_${name} INTERFACE ${ARG_DEPS})
  endif()
endfunction()

# vremote_test(NAME SOURCES ... DEPS ... [TIMEOUT s]): a GoogleTest program NAME, its cases known to ctest.
function(vremote_test name)
  if(NOT VREMOTE_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR}/src)
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gtest GTest::gmock GTest::gtest_main)
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT ${ARG_TIMEOUT})
endfunction()
