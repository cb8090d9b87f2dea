# find_package(nanochat) gives the target nanochat::nanochat, the shared library, and
# nanochat::static where libnanochat.a is installed. This file stands in
# LIBDIR/cmake/nanochat, and finds libraries and header from there.
get_filename_component(_nanochat_libdir "${CMAKE_CURRENT_LIST_DIR}/../.." ABSOLUTE)
find_path(nanochat_INCLUDE_DIR nanochat.h NO_DEFAULT_PATH
  PATHS "${_nanochat_libdir}/../include" "${_nanochat_libdir}/../../include")
if(NOT nanochat_INCLUDE_DIR OR NOT EXISTS "${_nanochat_libdir}/libnanochat.so")
  set(nanochat_FOUND FALSE)
  set(nanochat_NOT_FOUND_MESSAGE "nanochat.h or libnanochat.so is missing beside ${CMAKE_CURRENT_LIST_DIR}")
elseif(NOT TARGET nanochat::nanochat)
  get_filename_component(nanochat_INCLUDE_DIR "${nanochat_INCLUDE_DIR}" ABSOLUTE)
  add_library(nanochat::nanochat SHARED IMPORTED)
  set_target_properties(nanochat::nanochat PROPERTIES
    IMPORTED_LOCATION "${_nanochat_libdir}/libnanochat.so"
    IMPORTED_SONAME "libnanochat.so.1"
    INTERFACE_INCLUDE_DIRECTORIES "${nanochat_INCLUDE_DIR}")
  if(EXISTS "${_nanochat_libdir}/libnanochat.a")
    find_package(Threads QUIET)
    if(Threads_FOUND)
      add_library(nanochat::static STATIC IMPORTED)
      set_target_properties(nanochat::static PROPERTIES
        IMPORTED_LOCATION "${_nanochat_libdir}/libnanochat.a"
        INTERFACE_LINK_LIBRARIES "Threads::Threads;${CMAKE_DL_LIBS};m"
        INTERFACE_INCLUDE_DIRECTORIES "${nanochat_INCLUDE_DIR}")
    endif()
  endif()
endif()
unset(_nanochat_libdir)
mark_as_advanced(nanochat_INCLUDE_DIR)
