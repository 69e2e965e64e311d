/* SPDX-License-Identifier: MIT
 * yolov9mem._core: multi-phase initialisation of the extension module.
 */
#include "cpu/environment.h"
#include "python/module.h"

static int add_methods(PyObject *module)
{
    PyMethodDef *const tables[] = {ym_array_methods, ym_mosaic_methods, ym_sgd_methods,
                                   ym_runtime_methods, ym_unchanged_methods};
    for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++) {
        if (PyModule_AddFunctions(module, tables[i]) < 0) {
            return -1;
        }
    }
    return 0;
}

static int exec_core(PyObject *module)
{
    ym_error error;
    const ym_status status = cpu_check_environment(&error);
    if (status != YM_OK) {
        ym_raise(status, &error);
        return -1;
    }
    if (ym_import_numpy() < 0 || add_methods(module) < 0 ||
        ym_add_graph_type(module) < 0 || ym_add_plan_type(module) < 0) {
        return -1;
    }
    return 0;
}

static PyModuleDef_Slot core_slots[] = {
    {Py_mod_exec, exec_core},
    {0, NULL},
};

static struct PyModuleDef core_module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "yolov9mem._core",
    .m_doc = "The C core of yolov9mem: graphs, plans, mosaic and optimizer kernels.",
    .m_size = 0,
    .m_slots = core_slots,
};

PyMODINIT_FUNC PyInit__core(void);
PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&core_module);
}
