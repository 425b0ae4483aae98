DROP TABLE public.operator_actions;
