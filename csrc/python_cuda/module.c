/* SPDX-License-Identifier: MIT
 *
 * yolov9mem._cuda: multi-phase initialisation. Importing it makes no CUDA call, so it
 * works where there is no driver.
 */
#include "python_cuda/module.h"

#include "cuda/sgd.h"

static int exec_cuda(PyObject *module)
{
    PyMethodDef *const tables[] = {ym_cuda_device_methods, ym_cuda_sgd_methods,
                                   ym_cuda_mosaic_methods};
    if (ym_import_numpy() < 0) {
        return -1;
    }
    for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++) {
        if (PyModule_AddFunctions(module, tables[i]) < 0) {
            return -1;
        }
    }
    return PyModule_AddIntConstant(module, "SGD_GROUPS", YM_CUDA_SGD_GROUPS);
}

static PyModuleDef_Slot cuda_slots[] = {
    {Py_mod_exec, exec_cuda},
    {0, NULL},
};

static struct PyModuleDef cuda_module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "yolov9mem._cuda",
    .m_doc = "The CUDA backend: devices, tables for plans, mosaic, optimizer step.",
    .m_size = 0,
    .m_slots = cuda_slots,
};

PyMODINIT_FUNC PyInit__cuda(void);
PyMODINIT_FUNC PyInit__cuda(void)
{
    return PyModuleDef_Init(&cuda_module);
}
