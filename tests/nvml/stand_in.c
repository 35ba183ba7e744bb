/* A stand-in for NVIDIA's driver library, for machines without a GPU: what it answers stands in the
 * text file that NVML_STAND_IN names, one thing a line, and follows it when the file changes.
 *
 *     driver 550.54.14          version of the driver
 *     cuda 12040                newest CUDA, as the driver counts
 *     init 18                   nvmlInit fails with this code
 *     gpu 0 util=37 total=81920 used=1024 temp=41 power=150000 sm=1980 mem=2619 ecc=0 retired=0
 *           remap=0 remapfail=0 mig=0        (one line; MiB, mW, MHz)
 *     mig 0 1 total=9856 used=12              a MIG instance of GPU 0
 *     proc 0 1234 512           a process on GPU 0 with MiB
 *     fail 3 15                 every call for GPU 3 fails with this code
 *     hang 3                    every call for GPU 3 never comes back
 *     xid 2 79                  an event, told once
 *
 * Built with -DOLD it lacks the calls that drivers before 510 lack. Declarations are those of nvml.h,
 * as far as they are used here. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID = 2, NOT_SUPPORTED = 3, INSUFFICIENT = 7, TIMEOUT = 10 };
enum { MOST = 16, MIGS = 7, PROCS = 64 };

typedef unsigned long long u64;
struct device {
    int there, index, mig_index, has_mig;
    struct device *parent;
    unsigned util, temp, power, sm, mem, retired, remap, remapfail, mig;
    u64 total, used, ecc;
    int fail, hang;
    struct device *instances;
};
static struct device gpus[MOST];
static struct device migs[MOST][MIGS];
static struct { int gpu; unsigned pid; u64 mib; } procs[PROCS];
static int proc_count, gpu_count, init_code, cuda;
static char driver[80];
static struct { int gpu, code, told; } xids[MOST];
static int xid_count;
static struct timespec changed;
static u64 looked;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static u64 milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (u64)now.tv_sec * 1000 + (u64)now.tv_nsec / 1000000;
}

static void read_file(void) {
    const char *path = getenv("NVML_STAND_IN");
    struct stat stat_now;
    u64 now = milliseconds();
    if (looked && now - looked < 20) return;
    looked = now;
    if (!path || stat(path, &stat_now)) return;
    if (!memcmp(&stat_now.st_mtim, &changed, sizeof changed)) return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    changed = stat_now.st_mtim;
    for (int i = 0; i < MOST; i++) {
        memset(&gpus[i], 0, sizeof gpus[i]);
        memset(migs[i], 0, sizeof migs[i]);
        gpus[i].index = i;
        gpus[i].instances = migs[i];
    }
    proc_count = gpu_count = init_code = 0;
    strcpy(driver, "550.54.14");
    cuda = 12040;
    char line[512];
    while (fgets(line, sizeof line, file)) {
        int a = 0, b = 0, c = 0;
        if (sscanf(line, "driver %79s", driver) == 1) continue;
        if (sscanf(line, "cuda %d", &cuda) == 1) continue;
        if (sscanf(line, "init %d", &init_code) == 1) continue;
        if (sscanf(line, "fail %d %d", &a, &b) == 2) { gpus[a].fail = b; continue; }
        if (sscanf(line, "hang %d", &a) == 1) { gpus[a].hang = 1; continue; }
        if (sscanf(line, "proc %d %d %d", &a, &b, &c) == 3) {
            procs[proc_count].gpu = a;
            procs[proc_count].pid = (unsigned)b;
            procs[proc_count++].mib = (u64)c;
            continue;
        }
        if (sscanf(line, "xid %d %d", &a, &b) == 2) {
            int known = 0;
            for (int i = 0; i < xid_count; i++) known |= xids[i].gpu == a && xids[i].code == b;
            if (!known) { xids[xid_count].gpu = a; xids[xid_count].code = b; xids[xid_count++].told = 0; }
            continue;
        }
        struct device *device = NULL;
        if (sscanf(line, "mig %d %d", &a, &b) == 2) {
            device = &migs[a][b];
            device->parent = &gpus[a];
            device->index = a;
            device->mig_index = b;
        } else if (sscanf(line, "gpu %d", &a) == 1) {
            device = &gpus[a];
            if (a >= gpu_count) gpu_count = a + 1;
        }
        if (!device) continue;
        device->there = 1;
        for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n")) {
            char *value = strchr(word, '=');
            if (!value) continue;
            *value++ = 0;
            u64 number = strtoull(value, NULL, 10);
#define FIELD(name) if (!strcmp(word, #name)) device->name = number
            FIELD(util); FIELD(temp); FIELD(power); FIELD(sm); FIELD(mem); FIELD(retired); FIELD(remap);
            FIELD(remapfail); FIELD(mig); FIELD(total); FIELD(used); FIELD(ecc);
        }
    }
    fclose(file);
}

/* What every call for a device begins with. */
static int begin(struct device *device) {
    pthread_mutex_lock(&mutex);
    read_file();
    struct device *whole = device->parent ? device->parent : device;
    int fail = whole->fail, hang = whole->hang, there = whole->there;
    pthread_mutex_unlock(&mutex);
    while (hang) pause();
    return fail ? fail : there ? SUCCESS : 15;
}
#define BEGIN(device) do { int code = begin(device); if (code) return code; } while (0)

int nvmlInit_v2(void) { pthread_mutex_lock(&mutex); read_file(); pthread_mutex_unlock(&mutex); return init_code; }
int nvmlInitWithFlags(unsigned flags) { (void)flags; return nvmlInit_v2(); }
int nvmlShutdown(void) { return SUCCESS; }
int nvmlSystemGetDriverVersion(char *out, unsigned length) { snprintf(out, length, "%s", driver); return SUCCESS; }
int nvmlSystemGetCudaDriverVersion_v2(int *out) { *out = cuda; return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *out) { *out = (unsigned)gpu_count; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **out) {
    if (index >= (unsigned)gpu_count) return INVALID;
    *out = &gpus[index];
    BEGIN(*out);
    return SUCCESS;
}
int nvmlDeviceGetIndex(struct device *device, unsigned *out) { BEGIN(device); *out = (unsigned)device->index; return SUCCESS; }
int nvmlDeviceGetName(struct device *device, char *out, unsigned length) {
    BEGIN(device);
    snprintf(out, length, "NVIDIA Stand-In");
    return SUCCESS;
}
int nvmlDeviceGetUUID(struct device *device, char *out, unsigned length) {
    BEGIN(device);
    if (device->parent) snprintf(out, length, "MIG-%d%d000000-0000-0000-0000-000000000000", device->index, device->mig_index);
    else snprintf(out, length, "GPU-%d0000000-0000-0000-0000-000000000000", device->index);
    return SUCCESS;
}
struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char address[32]; };
int nvmlDeviceGetPciInfo_v3(struct device *device, struct pci *out) {
    BEGIN(device);
    memset(out, 0, sizeof *out);
    snprintf(out->address, sizeof out->address, "00000000:%02X:00.0", device->index + 0x3b);
    memcpy(out->legacy, out->address + 4, 12);
    return SUCCESS;
}
int nvmlDeviceGetUtilizationRates(struct device *device, unsigned out[2]) {
    BEGIN(device);
    if (device->parent) return NOT_SUPPORTED;
    out[0] = device->util;
    out[1] = 0;
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo(struct device *device, u64 out[3]) {
    BEGIN(device);
    out[0] = device->total << 20;
    out[1] = (device->total - device->used) << 20;
    out[2] = device->used << 20;
    return SUCCESS;
}
int nvmlDeviceGetTemperature(struct device *device, int sensor, unsigned *out) {
    BEGIN(device);
    if (sensor || device->parent) return NOT_SUPPORTED;
    *out = device->temp;
    return SUCCESS;
}
int nvmlDeviceGetPowerUsage(struct device *device, unsigned *out) {
    BEGIN(device);
    if (device->parent) return NOT_SUPPORTED;
    *out = device->power;
    return SUCCESS;
}
int nvmlDeviceGetClockInfo(struct device *device, int which, unsigned *out) {
    BEGIN(device);
    *out = which == 2 ? device->mem : device->sm;
    return SUCCESS;
}
int nvmlDeviceGetTotalEccErrors(struct device *device, int kind, int counter, u64 *out) {
    BEGIN(device);
    *out = kind == 1 && counter == 0 ? device->ecc : 0;
    return SUCCESS;
}
int nvmlDeviceGetRetiredPagesPendingStatus(struct device *device, int *out) { BEGIN(device); *out = (int)device->retired; return SUCCESS; }
struct field { unsigned id, scope; long long timestamp, latency; int type, code; union { double d; unsigned u; u64 l; } value; };
int nvmlDeviceGetFieldValues(struct device *device, int count, struct field *fields) {
    BEGIN(device);
    for (int i = 0; i < count; i++) {
        fields[i].type = 1;
        fields[i].code = SUCCESS;
        if (fields[i].id == 144) fields[i].value.u = device->remap;
        else if (fields[i].id == 145) fields[i].value.u = device->remapfail;
        else fields[i].code = NOT_SUPPORTED;
    }
    return SUCCESS;
}
int nvmlDeviceGetMigMode(struct device *device, unsigned *current, unsigned *pending) {
    BEGIN(device);
    *current = *pending = device->mig;
    return SUCCESS;
}
int nvmlDeviceGetMaxMigDeviceCount(struct device *device, unsigned *out) { BEGIN(device); *out = MIGS; return SUCCESS; }
int nvmlDeviceGetMigDeviceHandleByIndex(struct device *device, unsigned index, struct device **out) {
    BEGIN(device);
    if (index >= MIGS || !device->instances[index].there) return 6;
    *out = &device->instances[index];
    return SUCCESS;
}
#ifndef OLD
struct memory { unsigned version; u64 total, reserved, free, used; };
int nvmlDeviceGetMemoryInfo_v2(struct device *device, struct memory *out) {
    BEGIN(device);
    out->total = device->total << 20;
    out->reserved = device->used > 8 ? 8 << 20 : 0;
    out->free = (device->total - device->used) << 20;
    out->used = out->total - out->free - out->reserved;
    return SUCCESS;
}
struct process { unsigned pid; u64 bytes; unsigned instance, compute; };
int nvmlDeviceGetComputeRunningProcesses_v3(struct device *device, unsigned *count, struct process *out) {
    BEGIN(device);
    unsigned found = 0;
    for (int i = 0; i < proc_count; i++) {
        if (procs[i].gpu != device->index) continue;
        if (found < *count && out) {
            out[found].pid = procs[i].pid;
            out[found].bytes = procs[i].mib << 20;
            out[found].instance = out[found].compute = 0xffffffff;
        }
        found++;
    }
    unsigned room = *count;
    *count = found;
    return found > room ? INSUFFICIENT : SUCCESS;
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(struct device *device, unsigned *count, struct process *out) {
    (void)out;
    BEGIN(device);
    *count = 0;
    return SUCCESS;
}
#endif
int nvmlDeviceGetSupportedEventTypes(struct device *device, u64 *out) { BEGIN(device); *out = 8; return SUCCESS; }
int nvmlEventSetCreate(void **out) { *out = malloc(1); return SUCCESS; }
int nvmlEventSetFree(void *set) { free(set); return SUCCESS; }
int nvmlDeviceRegisterEvents(struct device *device, u64 types, void *set) {
    (void)types; (void)set;
    BEGIN(device);
    return SUCCESS;
}
struct event { struct device *device; u64 type, data; unsigned instance, compute; };
int nvmlEventSetWait_v2(void *set, struct event *out, unsigned timeout) {
    (void)set; (void)timeout;
    for (int i = 0; i < xid_count; i++) {
        if (xids[i].told) continue;
        xids[i].told = 1;
        out->device = &gpus[xids[i].gpu];
        out->type = 8;
        out->data = (u64)xids[i].code;
        return SUCCESS;
    }
    return TIMEOUT;
}
