// Arrays of Python as the kernels read and write them: NumPy's by the buffer protocol, torch's
// tensors by their own methods. DLPack, which would serve both, takes several microseconds longer,
// and that is the time in which a small attention is computed.
#pragma once

#include <nanobind/nanobind.h>

#include <cstring>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "problem.h"

namespace regard {

// Where an array's numbers lie, in elements.
struct Array {
  Array() = default;
  explicit Array(nanobind::handle source) : owner(nanobind::borrow(source)) {}

  nanobind::object owner;
  char* data = nullptr;
  Dtype dtype = Dtype::f32;
  std::vector<Index> shape, stride;

  Index ndim() const { return Index(shape.size()); }
};

// bfloat16, which NumPy lacks, arrives from there as its bits.
inline bool read_buffer(Array& array) {
  Py_buffer buffer;
  if (PyObject_GetBuffer(array.owner.ptr(), &buffer, PyBUF_RECORDS_RO)) {
    PyErr_Clear();
    return false;
  }
  const char* format = buffer.format;
  if (std::strchr("@=<", *format)) format++;
  const char* known = std::strchr("dfHe", *format);
  bool whole = known && *known && !format[1];
  if (whole) {
    constexpr Dtype kinds[] = {Dtype::f64, Dtype::f32, Dtype::bf16, Dtype::f16};
    array.dtype = kinds[known - std::strchr("dfHe", 'd')];
    array.data = static_cast<char*>(buffer.buf);
    array.shape.assign(buffer.shape, buffer.shape + buffer.ndim);
    array.stride.assign(buffer.strides, buffer.strides + buffer.ndim);
    for (Index& stride : array.stride) {
      whole = whole && stride % buffer.itemsize == 0;
      stride /= buffer.itemsize;
    }
  }
  PyBuffer_Release(&buffer);
  return whole;
}

// torch has one object for each dtype; spelling its name takes longer than all the rest.
inline bool torch_dtype(nanobind::handle dtype, Dtype& found) {
  static std::vector<std::pair<nanobind::handle, Dtype>> known;
  for (const auto& [object, kind] : known)
    if (object.is(dtype)) return found = kind, true;
  constexpr std::pair<const char*, Dtype> names[] = {{"torch.float64", Dtype::f64},
                                                     {"torch.float32", Dtype::f32},
                                                     {"torch.bfloat16", Dtype::bf16},
                                                     {"torch.float16", Dtype::f16}};
  const std::string name = nanobind::str(dtype).c_str();
  for (const auto& [spelled, kind] : names)
    if (name == spelled) {
      known.emplace_back(dtype.inc_ref(), kind);
      return found = kind, true;
    }
  return false;
}

// A name that Python need not look up anew in every call.
inline nanobind::handle interned(const char* name) { return PyUnicode_InternFromString(name); }

template <class... Arguments>
nanobind::object ask(nanobind::handle object, nanobind::handle method, Arguments&... arguments) {
  PyObject* given[] = {object.ptr(), arguments.ptr()...};
  PyObject* found = PyObject_VectorcallMethod(method.ptr(), given, std::size(given), nullptr);
  if (!found) throw nanobind::python_error();
  return nanobind::steal(found);
}

inline std::vector<Index> integers(nanobind::handle tuple) {
  std::vector<Index> found(nanobind::len(tuple));
  for (size_t n = 0; n < found.size(); n++)
    found[n] = PyLong_AsSsize_t(PyTuple_GET_ITEM(tuple.ptr(), n));
  if (PyErr_Occurred()) throw nanobind::python_error();
  return found;
}

inline char* memory_of(nanobind::handle tensor) {
  static const nanobind::handle data_ptr = interned("data_ptr");
  void* memory = PyLong_AsVoidPtr(ask(tensor, data_ptr).ptr());
  if (PyErr_Occurred()) throw nanobind::python_error();
  return static_cast<char*>(memory);
}

inline bool read_tensor(Array& array) {
  static const nanobind::handle dtype = interned("dtype"), is_neg = interned("is_neg"),
                                shape = interned("shape"), stride = interned("stride");
  const nanobind::object& source = array.owner;
  if (!torch_dtype(nanobind::getattr(source, dtype), array.dtype)) return false;
  if (ask(source, is_neg).is(Py_True)) return false;  // its memory holds the negatives
  array.data = memory_of(source);
  array.shape = integers(nanobind::getattr(source, shape));  // a tuple, as strides are
  array.stride = integers(ask(source, stride));
  return true;
}

// A tensor like another, of this shape, whose numbers are still to be computed.
inline Array made_like(const Array& like, std::vector<Index> shape) {
  static const nanobind::handle new_empty = interned("new_empty");
  Array made = like;
  made.shape = std::move(shape);
  made.stride.resize(made.ndim());
  nanobind::object sizes = nanobind::steal(PyTuple_New(made.ndim()));
  Index step = 1;
  for (Index d = made.ndim() - 1; d >= 0; d--) {
    PyTuple_SET_ITEM(sizes.ptr(), d, PyLong_FromSsize_t(made.shape[d]));
    made.stride[d] = step;
    step *= made.shape[d];
  }
  made.owner = ask(like.owner, new_empty, sizes);
  made.data = memory_of(made.owner);
  return made;
}

// The shape of an array, without its columns and with another number of them.
inline std::vector<Index> shape_of_rows(const Array& array) {
  return {array.shape.begin(), array.shape.end() - 1};
}
inline std::vector<Index> with_columns(const Array& array, Index columns) {
  std::vector<Index> shape = array.shape;
  shape.back() = columns;
  return shape;
}

// Whether its numbers lie in a row, the last dimension first.
inline bool is_dense(const Array& array) {
  Index step = 1;
  for (Index d = array.ndim() - 1; d >= 0; step *= array.shape[d--])
    if (array.shape[d] != 1 && array.stride[d] != step) return false;
  return true;
}

}  // namespace regard

template <>
struct nanobind::detail::type_caster<regard::Array> {
  NB_TYPE_CASTER(regard::Array, const_name("NDArray[Any]"))

  bool from_python(handle source, uint8_t, cleanup_list*) noexcept {
    try {
      value.owner = nanobind::borrow(source);
      return PyObject_CheckBuffer(source.ptr()) ? regard::read_buffer(value)
                                                : regard::read_tensor(value);
    } catch (python_error&) {  // no array at all; which argument it is, nanobind tells
      return false;
    } catch (std::bad_alloc&) {
      return false;
    }
  }
};
