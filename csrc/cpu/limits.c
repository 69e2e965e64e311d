/* SPDX-License-Identifier: MIT
 *
 * A control group's files are at the root of /sys/fs/cgroup where the process sees its
 * own group as the root (containers), else below it at the path that /proc/self/cgroup
 * tells. The groups above limit too.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "cpu/limits.h"

#include <limits.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The numbers in one file of a group; how many were found. */
static int read_numbers(const char *folder, const char *name, double number[2])
{
    char path[PATH_MAX];
    int length = snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = length < (int)sizeof path ? fopen(path, "r") : NULL;
    if (file == NULL) {
        return 0;
    }
    int found = fscanf(file, "%lf %lf", &number[0], &number[1]);
    fclose(file);
    return found;
}

/* cgroup v2 has quota (or "max") and period in one file, v1 in two. */
static int32_t folder_limit(const char *folder, int32_t most)
{
    double number[2] = {0.0, 0.0}, period[2] = {0.0, 0.0};
    if (read_numbers(folder, "cpu.max", number) != 2) {
        if (read_numbers(folder, "cpu.cfs_quota_us", number) < 1 ||
            read_numbers(folder, "cpu.cfs_period_us", period) < 1) {
            return most;
        }
        number[1] = period[0];
    }
    if (!(number[0] > 0.0 && number[1] > 0.0)) {
        return most;
    }
    double cpus = number[0] / number[1];
    return cpus < most ? (int32_t)(cpus + 0.999) : most;
}

/* The least of `mount` and of every folder on the way from it to the group. */
static int32_t path_limit(const char *mount, const char *group, int32_t most)
{
    char folder[PATH_MAX];
    most = folder_limit(mount, most);
    int length = snprintf(folder, sizeof folder, "%s%s", mount, group);
    if (length >= (int)sizeof folder) {
        return most;
    }
    for (size_t end = strlen(folder); end > strlen(mount); end--) {
        if (folder[end] == '\0' || folder[end] == '/') {
            folder[end] = '\0';
            most = folder_limit(folder, most);
        }
    }
    return most;
}

static bool lists_cpu(const char *controllers)
{
    const char *at = strstr(controllers, "cpu");
    for (; at != NULL; at = strstr(at + 1, "cpu")) {
        bool begins = at == controllers || at[-1] == ',';
        if (begins && (at[3] == '\0' || at[3] == ',')) {
            return true;
        }
    }
    return false;
}

/* One line of /proc/self/cgroup: number:controllers:path, v2 has no controllers. */
static int32_t line_limit(const char *root, char *line, int32_t most)
{
    char *controllers = strchr(line, ':');
    char *group = controllers == NULL ? NULL : strchr(controllers + 1, ':');
    if (group == NULL) {
        return most;
    }
    *controllers++ = *group++ = '\0';
    group[strcspn(group, "\n")] = '\0';
    char mount[PATH_MAX];
    if (*controllers != '\0' && !lists_cpu(controllers)) {
        return most;
    }
    const char *names[] = {*controllers == '\0' ? "" : "/cpu",
                           *controllers == '\0' ? "/unified" : "/cpu,cpuacct"};
    for (int i = 0; i < 2; i++) {
        int length =
            snprintf(mount, sizeof mount, "%s/sys/fs/cgroup%s", root, names[i]);
        if (length < (int)sizeof mount) {
            most = path_limit(mount, group, most);
        }
    }
    return most;
}

static int32_t group_limit(const char *root, int32_t most)
{
    char line[PATH_MAX];
    snprintf(line, sizeof line, "%s/proc/self/cgroup", root);
    FILE *file = fopen(line, "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        most = line_limit(root, line, most);
    }
    if (file != NULL) {
        fclose(file);
    }
    return most;
}

static int32_t from_environment(const char *name, int32_t most)
{
    const char *text = getenv(name);
    long value = text == NULL ? 0 : strtol(text, NULL, 10);
    return value > 0 && value < most ? (int32_t)value : most;
}

static bool is_set(const char *name)
{
    const char *text = getenv(name);
    return text != NULL && *text != '\0';
}

int32_t cpu_limit_threads(const char *root, int32_t usual)
{
    int32_t count = (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        count = CPU_COUNT(&set);
    }
    count = group_limit(root, count);
#endif
    if (is_set("YOLOV9MEM_NUM_THREADS")) {
        count = from_environment("YOLOV9MEM_NUM_THREADS", count);
    } else if (usual > 0) {
        count = usual < count ? usual : count;
    } else {
        count = from_environment("OMP_NUM_THREADS", count);
    }
    return count < 1 ? 1 : count;
}
