// What code compiled by a newer GCC or against a newer glibc asks the runtime for, and libstdc++ of
// GCC 8 and glibc 2.28 do not have. The library brings its own, which symbols.map keeps inside.
#include <new>
#include <sstream>

// constructors without arguments: GLIBCXX_3.4.26
template std::basic_ostringstream<char>::basic_ostringstream();
template std::basic_stringstream<char>::basic_stringstream();

namespace std {
void __throw_bad_array_new_length();  // GLIBCXX_3.4.29
void __throw_bad_array_new_length() { throw std::bad_array_new_length(); }
}  // namespace std

// GLIBC_2.32: whether shared_ptr may count without atomics. Zero: there may be threads.
extern "C" {
extern char __libc_single_threaded;
char __libc_single_threaded = 0;
}
