// Directories in which a node keeps what only its own user may change. Everything in them is opened
// by name afterwards, so nobody else may be able to put something there, or another directory in
// their place.
#pragma once

#include <string>

#include "base/result.h"

namespace vremote {

// Whether `path`, or the nearest of its parents that is there, belongs to this process's user or to
// root, is no symbolic link of somebody else, and cannot be written to by others. Errors say what
// is wrong with which directory, and how to mend it; EPERM when others could have a hand in it.
Status check_private_directory(const std::string& path);

// Whether all that is in it belongs to this process's user or to root: what others have put there
// while they could is not read as one's own. That it is not there is no error.
Status check_private_files(const std::string& path);

// Makes those that are missing of it and its parents. Others may pass through what is made,
// whatever the umask, and neither look around nor put anything there (0711). Returns 0 or an errno.
int make_directories(const std::string& path);

// Makes it, and its parents, or takes the one that is there, if check_private_directory() has
// nothing against it but its mode; that is 0700 on return.
Status make_private_directory(const std::string& path);

}  // namespace vremote
