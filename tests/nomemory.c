/* Memory that runs out on request. Preloaded, it stands before the C library's; imported, it is the switch. */
#include <Python.h>
#include <errno.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static long left = -1;  /* allocations until one fails; -1: none does */
static int for_ever;
static long failed;

static int fails(void)
{
    if (left < 0 || left-- > 0)
        return 0;
    left = for_ever ? 0 : -1;
    failed++;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t n) { return fails() ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t size) { return fails() ? NULL : __libc_calloc(n, size); }
void *realloc(void *p, size_t n) { return fails() ? NULL : __libc_realloc(p, n); }
void *memalign(size_t alignment, size_t n) { return fails() ? NULL : __libc_memalign(alignment, n); }
void *aligned_alloc(size_t alignment, size_t n) { return memalign(alignment, n); }

int posix_memalign(void **p, size_t alignment, size_t n)
{
    *p = memalign(alignment, n);
    return *p ? 0 : ENOMEM;
}

/* run(function, n, for_ever): the exception that it ends with or None, and how many allocations failed. In C, for a
   handler in Python needs memory of its own. */
static PyObject *run(PyObject *self, PyObject *args)
{
    PyObject *function, *type, *error = NULL, *traceback, *result;
    long n;
    int ever;
    if (!PyArg_ParseTuple(args, "Olp", &function, &n, &ever))
        return NULL;
    failed = 0, for_ever = ever, left = n;
    result = PyObject_CallNoArgs(function);
    left = -1;
    if (result == NULL) {
        PyErr_Fetch(&type, &error, &traceback);
        PyErr_NormalizeException(&type, &error, &traceback);
        Py_XDECREF(type);
        Py_XDECREF(traceback);
    }
    Py_XDECREF(result);
    return Py_BuildValue("(Nl)", error ? error : Py_NewRef(Py_None), failed);
}

static PyMethodDef methods[] = {{"run", run, METH_VARARGS, NULL}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "nomemory", NULL, -1, methods};
PyMODINIT_FUNC PyInit_nomemory(void) { return PyModule_Create(&module); }
