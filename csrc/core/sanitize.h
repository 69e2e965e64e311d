/* SPDX-License-Identifier: MIT
 * YM_SANITIZED: is this compiled for AddressSanitizer? GCC and clang say it
 * differently.
 */
#ifndef YM_CORE_SANITIZE_H
#define YM_CORE_SANITIZE_H

#ifdef __has_feature
#define YM_HAS_FEATURE(name) __has_feature(name)
#else
#define YM_HAS_FEATURE(name) 0
#endif

#if defined(__SANITIZE_ADDRESS__) || YM_HAS_FEATURE(address_sanitizer)
#define YM_SANITIZED 1
#else
#define YM_SANITIZED 0
#endif

#endif
