/* A delegate for tests. Option `mode`: "nothing" takes no node, "fails" does not start, "logistic"
   takes each float32 LOGISTIC and computes it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* TensorFlow Lite's binary interface of delegates, as far as it is used here; fields that are only
   passed over are called `unused`. */
enum { OK = 0, ERROR = 1, LOGISTIC = 14 };

typedef struct { int size; int data[]; } IntArray;

typedef struct {
  long unused_type;
  float* data;
  void* unused_1[3];
  size_t bytes;
  void* unused_2[8];
} Tensor;

typedef struct { IntArray *inputs, *outputs; } Node;

typedef struct Context Context;
typedef struct Delegate Delegate;

typedef struct {
  void *init, *free, *prepare;
  int (*invoke)(Context*, Node*);
  void* profiling_string;
  int builtin_code;
  const char* custom_name;
  int version;
  void *external, *async_kernel;
  unsigned long inplace_operator;
} Registration;

struct Context {
  size_t tensors_size;
  int (*get_execution_plan)(Context*, IntArray**);
  Tensor* tensors;
  void* unused[4];
  int (*get_node_and_registration)(Context*, int, Node**, Registration**);
  int (*replace_nodes)(Context*, Registration, const IntArray*, Delegate*);
};

struct Delegate {
  void* data;
  int (*prepare)(Context*, Delegate*);
  void* unused[3];
  long flags;
  void* builder;
};

static int invoke(Context* context, Node* node) {
  const Tensor* x = &context->tensors[node->inputs->data[0]];
  Tensor* y = &context->tensors[node->outputs->data[0]];
  for (size_t i = 0; i < x->bytes / sizeof(float); ++i)
    y->data[i] = 1.0f / (1.0f + expf(-x->data[i]));
  return OK;
}

static int prepare(Context* context, Delegate* delegate) {
  if (strcmp(delegate->data, "logistic") != 0) return OK;
  IntArray* plan;
  if (context->get_execution_plan(context, &plan) != OK) return ERROR;
  IntArray* found = malloc(sizeof(int) * (plan->size + 1));
  found->size = 0;
  for (int i = 0; i < plan->size; ++i) {
    Node* node;
    Registration* registration;
    context->get_node_and_registration(context, plan->data[i], &node, &registration);
    if (registration->builtin_code == LOGISTIC) found->data[found->size++] = plan->data[i];
  }
  Registration kernel = {.invoke = invoke, .custom_name = "TestDelegate", .version = 1};
  int done = context->replace_nodes(context, kernel, found, delegate);
  free(found);
  return done;
}

Delegate* tflite_plugin_create_delegate(const char* const* keys, const char* const* values,
                                        size_t count, void (*report)(const char*)) {
  const char* mode = "nothing";
  for (size_t i = 0; i < count; ++i)
    if (strcmp(keys[i], "mode") == 0) mode = values[i];
  if (strcmp(mode, "fails") == 0) {
    if (report) report("the device is on fire");
    return NULL;
  }
  Delegate* delegate = calloc(1, sizeof(Delegate));
  delegate->data = strdup(mode);
  delegate->prepare = prepare;
  return delegate;
}

/* LiteRT calls it with NULL after a delegate that did not start. */
void tflite_plugin_destroy_delegate(Delegate* delegate) {
  if (delegate == NULL) return;
  free(delegate->data);
  free(delegate);
}
