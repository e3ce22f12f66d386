$banner
/* For tests and comparisons on this machine: a function that is told after every layer, none by default. */
#ifndef ${upper}_HOOKS_H
#define ${upper}_HOOKS_H

extern ${upper}_API void (*${name}_layer_end)(int layer);

#define ${prefix_upper}_LAYER_END(i) do { if (${name}_layer_end != 0) { ${name}_layer_end(i); } } while (0)

#endif
