# Libraries that load where glibc is 2.28 and libstdc++ that of GCC 8, the oldest that torch's own
# wheels run on, from whichever newer system they are built on. docs/decisions/manylinux.md
#
# glibc keeps the versions of a function that old programs were linked with, but a linker takes the
# newest. So it is shown a stand-in for glibc's library first, which has the old version alone.

# Of libm every function that we call, since a library is taken once: `undefined reference` to one
# that is missing. Of the others those that got a newer version after 2.28 and that we call, or the
# CUDA runtime inside our library.
set(MCR_OLD_LIBRARIES m.so.6 dl.so.2 pthread.so.0 rt.so.1)
set(MCR_OLD_m.so.6
    exp exp2 exp2f expf expm1 expm1f log log1p log1pf log2 log2f logf pow powf sqrt sqrtf tanh tanhf)
set(MCR_OLD_dl.so.2 dlclose dlerror dlmopen dlopen dlsym dlvsym)
set(MCR_OLD_pthread.so.0
    pthread_condattr_setpshared pthread_create pthread_detach pthread_getspecific pthread_join
    pthread_key_create pthread_key_delete pthread_kill pthread_mutex_trylock
    pthread_mutexattr_destroy pthread_mutexattr_init pthread_mutexattr_setpshared
    pthread_mutexattr_settype pthread_once pthread_rwlock_destroy pthread_rwlock_init
    pthread_rwlock_rdlock pthread_rwlock_timedrdlock pthread_rwlock_timedwrlock
    pthread_rwlock_tryrdlock pthread_rwlock_trywrlock pthread_rwlock_unlock pthread_rwlock_wrlock
    pthread_rwlockattr_destroy pthread_rwlockattr_init pthread_rwlockattr_setpshared
    pthread_setspecific pthread_spin_destroy pthread_spin_init pthread_spin_lock
    pthread_spin_trylock pthread_spin_unlock sem_destroy sem_init sem_post sem_timedwait
    sem_trywait sem_wait)
set(MCR_OLD_rt.so.1 shm_open shm_unlink)

# The first glibc of the platform, whose version they carry there, but for one
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(MCR_FIRST_GLIBC GLIBC_2.2.5)
  set(MCR_GLIBC_OF_dlmopen GLIBC_2.3.4)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(MCR_FIRST_GLIBC GLIBC_2.17)
endif()
include(CheckCXXSourceCompiles)
check_cxx_source_compiles("
#include <string>
#if !defined(__GLIBCXX__) || !__GLIBC_PREREQ(2, 29)
#error nothing to do, or another runtime
#endif
int main() {}
" MCR_NEWER_GLIBC)

# A stand-in for lib<name>: its functions are labels that nobody jumps to.
function(mcr_add_stand_in name)
  set(folder ${CMAKE_BINARY_DIR}/old-glibc)
  set(labels "")
  set(versions "")
  foreach(symbol IN LISTS MCR_OLD_${name})
    string(APPEND labels
           "asm(\".globl ${symbol}\\n.type ${symbol}, %function\\n${symbol}:\\n.byte 0\");\n")
    set(version ${MCR_FIRST_GLIBC})
    if(MCR_GLIBC_OF_${symbol})
      set(version ${MCR_GLIBC_OF_${symbol}})
    endif()
    list(APPEND versions ${version})
    string(APPEND symbols_${version} "${symbol}; ")
  endforeach()
  list(REMOVE_DUPLICATES versions)
  set(map "")
  foreach(version IN LISTS versions)
    string(APPEND map "${version} { ${symbols_${version}}};\n")
  endforeach()
  file(CONFIGURE OUTPUT ${folder}/${name}.cpp CONTENT "${labels}" @ONLY)
  file(CONFIGURE OUTPUT ${folder}/${name}.map CONTENT "${map}" @ONLY)
  add_library(old_${name} SHARED ${folder}/${name}.cpp)
  set_target_properties(old_${name} PROPERTIES
    LIBRARY_OUTPUT_DIRECTORY ${folder} PREFIX lib OUTPUT_NAME ${name} SUFFIX "" NO_SONAME ON
    LINK_DEPENDS ${folder}/${name}.map)
  target_link_options(old_${name} PRIVATE
    -nostdlib -Wl,-soname,lib${name} -Wl,--version-script=${folder}/${name}.map)
endfunction()

# Before the other libraries of `target`, for the first definition of a symbol counts.
function(mcr_load_on_old_systems target)
  if(NOT (MCR_FIRST_GLIBC AND MCR_NEWER_GLIBC))
    return()
  endif()
  set(map ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/symbols.map)
  target_sources(${target} PRIVATE ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/definitions.cpp)
  target_link_options(${target} PRIVATE -Wl,--version-script=${map})
  set_property(TARGET ${target} APPEND PROPERTY LINK_DEPENDS ${map})
  foreach(name IN LISTS MCR_OLD_LIBRARIES)
    if(NOT TARGET old_${name})
      mcr_add_stand_in(${name})
    endif()
    target_link_libraries(${target} PRIVATE old_${name})
  endforeach()
endfunction()
